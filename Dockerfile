# kdrun in a container, for CPUs; for GPUs: --build-arg TENSORFLOW='tensorflow[and-cuda]'. docs/cluster.md says how to use it.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY kdrun kdrun
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:${PYTHON}-slim
ARG TENSORFLOW=tensorflow
ARG EXTRAS=litert,onnx
COPY constraints.txt /
# by far the largest, in a layer of its own: a change of kdrun leaves it as it is
RUN pip install --no-cache-dir -c /constraints.txt "${TENSORFLOW}"
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --no-cache-dir -c /constraints.txt "$(ls /dist/*.whl)[${EXTRAS}]"
RUN useradd kdrun && mkdir /work && chown kdrun /work
USER kdrun
# where libraries keep their caches: also of a user whom the image does not know (--user)
ENV HOME=/tmp
WORKDIR /work
VOLUME /work
ENTRYPOINT ["kdrun"]
CMD ["--help"]

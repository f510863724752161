"""The model card of an export, README.md: what the files are, how good, how fast, of which run, and how to call them.

Its header is of the form that model hubs read.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kdrun.comparison import texts
from kdrun.export.formats import Target

# ten lines that answer for one picture; tests run them as they stand in a card
_LITERT = """\
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

labels = open("labels.txt", encoding="utf-8").read().splitlines()
network = Interpreter("{name}")
network.allocate_tensors()
given, answer = network.get_input_details()[0], network.get_output_details()[0]
picture = Image.open("picture.png").convert("{mode}").resize(({width}, {height}))
network.set_tensor(given["index"], np.asarray(picture, np.uint8).reshape(given["shape"]))
network.invoke()
{output} = network.get_tensor(answer["index"])[0]
"""
_ONNX = """\
import numpy as np
import onnxruntime
from PIL import Image

labels = open("labels.txt", encoding="utf-8").read().splitlines()
network = onnxruntime.InferenceSession("{name}", providers=["CPUExecutionProvider"])
picture = Image.open("picture.png").convert("{mode}").resize(({width}, {height}))
image = np.asarray(picture, np.uint8).reshape(1, {height}, {width}, {channels})
{output} = network.run(None, {{"image": image}})[0][0]
"""
_SAVED_MODEL = """\
import numpy as np
import tensorflow as tf
from PIL import Image

labels = open("labels.txt", encoding="utf-8").read().splitlines()
network = tf.saved_model.load("{name}").signatures["serving_default"]
picture = Image.open("picture.png").convert("{mode}").resize(({width}, {height}))
image = np.asarray(picture, np.uint8).reshape(1, {height}, {width}, {channels})
{output} = network(image=tf.constant(image))["{output}"].numpy()[0]
"""
_CODE = {"litert": _LITERT, "onnx": _ONNX, "saved_model": _SAVED_MODEL}
_LAST = "print(labels[{output}.argmax()], {output}.max())\n"


def code(target: Target, output: str, shape: Sequence[int]) -> str:
    """Python that asks a file about `picture.png`."""
    height, width, channels = shape
    values = {"name": target.name, "mode": "L" if channels == 1 else "RGB", "output": output}
    return (_CODE[target.format] + _LAST).format(**values, width=width, height=height, channels=channels)


def written(
    record: Mapping[str, Any],
    facts: Mapping[str, Any],
    shape: Sequence[int],
    exported: Sequence[Mapping[str, Any]],
    run: str,
) -> str:
    """The card's text, of the exported run's record, what the files say of themselves, the shape of a training image,
    and the export's results."""
    network, teachers = record["model"]["name"], [each["run"] for each in record.get("teachers", [])]
    objective = list((record.get("identity") or {}).get("objective", {}))
    how = f"taught by {', '.join(teachers)} ({'+'.join(objective)})" if teachers else "taught by its labels alone"
    kept, (height, width, channels) = facts["decoding"], shape
    lines = [
        "---",
        "license: # fill in",
        "pipeline_tag: image-classification",
        "library_name: kdrun",
        "tags: [image-classification, knowledge-distillation]",
        f"dataset_sha256: {record.get('dataset_sha256')}",
        f"seed: {record['seed']}",
        f"teacher: {json.dumps(teachers)}",
        "metrics:",
        *(f"  {json.dumps(each['file'])}: {{accuracy: {each['parity']['accuracy']:.4f}}}" for each in exported),
        "---",
        f"# {network}, {len(facts['class_names']):,} classes",
        "",
        f"{texts.markdown(network)}, {record['parameters']['total']:,} parameters, {texts.markdown(how)}; seed "
        f"{record['seed']}; trained on data with the sha256 `{record.get('dataset_sha256')}`. Exported from "
        f"`{texts.one_line(run)}` by kdrun {facts['kdrun']}.",
        "",
        f"Each file takes uint8 pixels, 0 to 255, [batch, {height}, {width}, {channels}] (a SavedModel: of any height "
        f"and width), and gives {facts['output']}, float32, a "
        "number for each line of `labels.txt`. All that is done to pixels is inside of it.",
        f"In training, pictures were made {kept['size']} x {kept['size']} pixels ({kept['resize']}); "
        "`kdrun stage=predict file=FILE inputs=FOLDER` does the same.",
        "",
        "| file | kB | accuracy, % | change, points (95 %) | lost, won | agreement, % | largest difference "
        "| 1 thread, ms: median (p95) | all threads, ms | peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(each) for each in exported),
        "",
        f"Accuracy is of {exported[0]['parity']['count']:,} test images, which each file was asked in its own runtime; "
        "change is from the network before it was exported, over images. Milliseconds are of one image, on "
        f"{record['host']['machine']} with {record['host']['cpus']} cores; memory is of a process of its own.",
    ]
    for each in exported:
        target = Target(each["format"], each["quantize"])
        lines += ["", f"## {each['file']}", "", "```python", code(target, facts["output"], shape).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _row(each: Mapping[str, Any]) -> str:
    parity, one, all_ = each["parity"], each["latency"]["one_thread"], each["latency"]["all_threads"]
    change = parity["change"]
    cells = [
        f"`{each['file']}`",
        f"{each['bytes'] / 1e3:,.0f}",
        f"{100 * parity['accuracy']:.2f}",
        f"{100 * change['gain']:+.2f} ({100 * change['low']:+.2f} to {100 * change['high']:+.2f})",
        f"{parity['lost']}, {parity['won']}",
        f"{100 * parity['agreement']:.2f}",
        f"{parity['largest_difference']:.2g}",
        f"{1e3 * one['median']:.3g} ({1e3 * one['p95']:.3g})",
        f"{1e3 * all_['median']:.3g} ({1e3 * all_['p95']:.3g})",
        f"{each['peak_memory'] / 1e6:,.0f}" if each["peak_memory"] else "",
    ]
    return f"| {' | '.join(cells)} |"

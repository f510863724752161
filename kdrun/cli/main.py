"""The command line: compose the config, check it, and only then load TensorFlow and run the stage."""

import argparse
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from signal import Signals
from typing import NoReturn

from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kdrun import __version__, plugins, registry
from kdrun.cli import answer, completion, resuming, shared
from kdrun.cli.answer import Begun
from kdrun.cli.compose import CONFIG, composing, config_dir, config_folder, load_plugins, plain, the_hydra
from kdrun.cli.explain import explained, readable, unknown_flag, verbs
from kdrun.cli.plan import Place, Request, check_request, check_words, find_place
from kdrun.errors import KdrunError, NoRoom
from kdrun.runs import directory, sweeps
from kdrun.runtime import devices, signals, terminal
from kdrun.runtime.rendezvous import Follower
from kdrun.runtime.workers import Pool
from kdrun.stages import compare, work
from kdrun.storage import files


def main(arguments: list[str] | None = None) -> int:
    """Run kdrun with command-line arguments (sys.argv's by default); returns the exit code (see errors.py)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--complete"]:  # by a shell, for which kdrun's own scripts ask
        if found := completion.answer(arguments[1:]):
            _answer(found)
        return 0
    # without Hydra, which composes a config for the one, and says its own version
    if asked := _help() if not arguments or {"--help", "-h"} & set(arguments) else _version(arguments):
        _answer(asked)
        return 0
    if not answer.is_json(arguments):
        return _attempt(arguments, Begun())[0]
    begun = Begun()
    with answer.on_standard_error():
        exit_code, error = _attempt(arguments, begun)
    _answer(answer.text(begun, exit_code, error))
    return exit_code


def _attempt(arguments: list[str], begun: Begun) -> tuple[int, str | None]:
    """Do what a command line asks for; returns the exit code, and what it failed at, which is printed."""
    try:
        with signals.at_once():
            exit_code = _run(arguments, begun)
        return exit_code, "some of its jobs are not completed" if exit_code else None
    except resuming.Completed as done:
        begun.run_dir = done.run_dir
        print(f"kdrun: {done}")
        return 0, None
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        how = f"Stopped by {Signals(code - 128).name}." if code > 128 else f"It ended with exit code {code}."
        return code, how if code else None
    except (KdrunError, HydraException, OmegaConfBaseException, YAMLError) as error:
        problem = error if isinstance(error, KdrunError) else explained(error, arguments)
        if isinstance(problem, NoRoom):
            problem.command = shlex.join(["kdrun", *arguments])
        return _failed(problem.exit_code, str(problem))
    except signals.AtOnce as error:
        return _failed(error.exit_code, str(error))
    except KeyboardInterrupt:
        return _failed(130, "Stopped by SIGINT.")
    except Exception as error:  # noqa: BLE001 - the last place where an unexpected one can be shown and given its exit code
        if no_room := files.no_room(error, Path()):  # for a run directory
            return _failed(1, str(no_room))
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {error}"


def _failed(exit_code: int, said: str) -> tuple[int, str]:
    print(terminal.fitted(f"kdrun: {said}", stream=sys.stderr), file=sys.stderr)
    return exit_code, said


def _answer(text: str) -> None:
    """Print it; whoever reads may have seen enough, as `head` has."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is written at the process's end


def _version(arguments: list[str]) -> str:
    return f"kdrun {__version__}" if "--version" in arguments else ""


def _help() -> str:
    text = OmegaConf.load(config_dir() / "hydra" / "help" / "kdrun.yaml").template
    return text.replace("$$", "$").rstrip()


def _run(arguments: list[str], begun: Begun) -> int:
    """Do what a command line asks for; returns the exit code, and notes what it has `begun`."""
    for word, after in pairwise([*arguments, ""]):
        if word.partition("=")[0] == "--completion":
            _answer(completion.script(word.partition("=")[2] or after))
            return 0
    parser = get_args_parser()
    # argparse would print its usage and end the process
    parser.error = _refuse  # type: ignore[method-assign]  # Hydra makes it, so that it is of no class of ours
    options = parser.parse_intermixed_args(arguments)  # overrides before, between and after flags
    options.overrides = [readable(word, options.multirun) for word in verbs(options.overrides)]
    flags, searched, folder = config_folder(options)
    with composing(folder):
        if options.hydra_help or options.cfg or options.info or options.shell_completion:
            if not options.shell_completion:
                load_plugins(options.overrides)
            _show(options, parser, searched)
            return 0
        check_words(options.overrides)
        load_plugins(options.overrides)
        terminal.log_to_terminal()  # pictures are decoded, and what hurts in the data is said, while it is checked
        request, place = check_request(options, flags, searched), Place()
        begun.stage = request.values["stage"]
        with shared.joined(request.values) as member:
            if isinstance(member, Follower):
                place_of_log, threads = shared.told(member, request.values)
                return _run_one(request, Place(place_of_log, goes_on=True), threads)
            try:
                with signals.undisturbed():  # which raises at its end, when the folders are there, and noted
                    place = find_place(request)
                if place.sweep:
                    begun.sweep = Path(place.folder)
                    return _run_sweep(request, place, place.sweep, begun)
                begun.run_dir = Path(place.folder)
                if member:
                    shared.tell(member, request.values, begun.run_dir)
                return _run_one(request, place)
            finally:
                if place.is_new:
                    _remove_unbegun(Path(place.folder))


def _refuse(message: str) -> NoReturn:
    raise unknown_flag(message)


def _show(options: argparse.Namespace, parser: argparse.ArgumentParser, searched: Sequence[str]) -> None:
    """What Hydra shows of a config, of itself, or for a shell's completion."""
    hydra, name = the_hydra(), options.config_name or CONFIG
    overrides = [*options.overrides, *searched]
    if options.hydra_help:
        hydra.hydra_help(config_name=name, args_parser=parser, args=options)
    elif options.cfg:
        hydra.show_cfg(
            config_name=name,
            overrides=overrides,
            cfg_type=options.cfg,
            package=options.package,
            resolve=options.resolve,
        )
    elif options.info:
        hydra.show_info(options.info, config_name=name, overrides=overrides)
    else:
        hydra.shell_completion(config_name=name, overrides=overrides)


def _run_one(request: Request, place: Place, threads: int | None = None) -> int:
    """Run one job in its directory, with Hydra's record of the config, its environment and its logging; with so many
    threads an operation, if that is said."""
    composed, failures = request.composed, []
    with read_write(composed), open_dict(composed):
        composed.hydra.run.dir = place.folder
        if place.goes_on:
            composed.hydra.output_subdir = None  # it would be written over

    def job(_: DictConfig) -> None:
        try:
            work.do(request.values, Path(place.folder).absolute(), request.options.overrides, threads)
        except Exception as error:  # noqa: BLE001 - Hydra would put a line of its own before ours
            failures.append(error)

    callbacks = Callbacks(composed)
    context = HydraContext(config_loader=the_hydra().config_loader, callbacks=callbacks)
    try:
        callbacks.on_run_start(config=composed, config_name=CONFIG)
        done = run_job(
            hydra_context=context,
            task_function=job,
            config=composed,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            configure_logging=True,
        )
        callbacks.on_run_end(config=composed, config_name=CONFIG, job_return=done)
    except Exception as error:
        if problem := files.no_room(error, Path(place.folder)):  # what Hydra writes
            raise problem from error
        raise
    if failures:
        raise failures[0]
    return 0


def _run_sweep(request: Request, place: Place, sweep: sweeps.Sweep, begun: Begun) -> int:
    """Have Hydra's sweeper name all jobs, have them done, and show what came of them."""
    from kdrun.reports import jobs

    overrides = [*request.options.overrides, *request.searched, *place.overrides]
    all_done = False
    try:
        with _workers(sweep) as pool:
            the_hydra().multirun(
                config_name=request.options.config_name or CONFIG,
                task_function=_job_of(sweep, pool),
                overrides=overrides,
                with_log_configuration=True,
            )
            if pool:
                pool.wait()
    except Exception as error:
        if problem := files.no_room(error, Path(place.folder)):  # what Hydra writes
            raise problem from error
        # a search of which no trial was completed has no best one, for which its sweeper has a traceback
        if not isinstance(error, ValueError) or sweeps.done(sweep)["completed"]:
            raise
    finally:
        names = sweeps.of_command(sweep)
        begun.jobs = [Path(place.folder) / name for name in names]
        all_done = jobs.show(sweeps.records(sweep), names, sweep.total)
    if "seed" in sweep.keys and registry.get("stage", request.values["stage"]).takes_seeds:
        begun.comparison = directory.create(request.values["outputs"], "compare")
        compare.sweep(request.values, place.folder, begun.comparison)
    return 0 if all_done else 1


@contextmanager
def _workers(sweep: sweeps.Sweep) -> Iterator[Pool | None]:
    """The workers of a sweep; None where its jobs are done here, or by another launcher."""
    if not sweep.workers:
        yield None
        return
    with signals.on_signals(), Pool(sweep.workers, work.WORKER) as pool:
        yield pool


def _job_of(sweep: sweeps.Sweep, pool: Pool | None) -> Callable[[DictConfig], float]:
    """The function that Hydra calls for every job, perhaps in another process; what it needs to know comes along.

    With a pool it has a worker do the job, and returns at once.
    """

    def job(composed: DictConfig) -> float:
        terminal.log_to_terminal()
        given, hydra = plain(composed), HydraConfig.get()
        if hydra.runtime.choices["hydra/launcher"] != "basic":
            devices.pin(hydra.job.num, devices.count(given["devices"]))  # this process is one of several
        plugins.load(given["plugins"])
        number, words = hydra.job.num + 1, list(hydra.overrides.task)
        if pool is None:
            return _objective(work.sweep_job(sweep, number, given, words))
        name = work.directory_of(sweep, given, words).name
        threads = work.threads_beside(given)
        given = {**given, "workers": 1}
        pool.submit(work.as_task("sweep_job", name, threads, given, sweep=sweep, number=number, words=words))
        pool.attend(0)
        return float("nan")

    return job


def _objective(results: dict | None) -> float:
    """What a search minimises: the validation cross-entropy of the best weights; not a number for a job that failed."""
    best = ((results or {}).get("validation") or {}).get("best") or {}
    return best.get("cross_entropy", float("nan"))


def _remove_unbegun(run_dir: Path) -> None:
    """Take away the directory of a run that did not get as far as a record: nothing of it is worth keeping."""
    if not (run_dir / "run.json").exists():
        shutil.rmtree(run_dir, ignore_errors=True)
        for parent in (run_dir.parent, run_dir.parent.parent):
            with suppress(OSError):  # it holds something else
                parent.rmdir()

"""`l2o train`. What starts JAX is imported once the settings are resolved."""

import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import l2o_eqx as l2o

from ._checkpoints import (
    DEFAULT_MINUTES,
    JOINT_TRAINING,
    TRAINING,
    Cadence,
    Every,
    Minutes,
    checkpoint,
    state_of,
)
from ._distributed import Coordinator, Crew, Distributed, Process
from ._errors import Failure, counted, describe
from ._folder import CONFIG, check_free
from ._interrupt import interrupted, run_interruptibly
from ._mixture import name_of
from ._options import AsJson, Assignments, Cache, Config, Cores, Quiet, folder_option, with_settings
from ._resolve import Table, read_assignments, read_toml, refuse_ignored, resolve, to_toml
from ._start import start
from ._tables import SEARCH

# For the callbacks of one super epoch.
_PATIENCE_SECONDS = 5.0

if TYPE_CHECKING:
    from ._build import Parts
    from ._comparison import Comparisons
    from ._output import Output
    from ._run import Run


@with_settings()
def train(
    config: Config = None,
    assignments: Assignments = None,
    out: Annotated[
        Path | None,
        folder_option("Folder to make; runs/<time>-<objective>-<optimizer> if not given."),
    ] = None,
    checkpoint_every: Every = None,
    checkpoint_minutes: Minutes = DEFAULT_MINUTES,
    cores: Cores = None,
    cache: Cache = True,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    process: Process = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Train an optimizer, compare it with tuned hand-designed ones, keep all in a folder.

    Options override --set, which overrides the file of --config, which overrides the objective's defaults.
    To repeat a run, give its config.toml to --config.
    """
    file = [read_toml(config)] if config else []
    given = [*read_assignments(assignments or []), settings]
    checked = resolve([*file, *given])
    refuse_ignored(checked, given)
    crew = Crew.of(distributed, coordinator, process)

    start(cores=cores, cache=cache)
    with crew.joined() as member:
        member.check(lambda: check_free(out))
        cadence = Cadence(checkpoint_every, checkpoint_minutes)
        run(checked, member.folder(out), member.output(quiet, as_json), cadence)


@dataclasses.dataclass
class _Training:
    run: "Run"
    solution: "l2o.MetaSolution | None" = None
    # Where it was taken up.
    begun: "l2o.MetaState | None" = None
    # Where it stood if it was left behind in compiled code, without a solution.
    latest: "l2o.Progress | None" = None
    failed_so_far: "list[l2o.FailedObjective]" = dataclasses.field(default_factory=list)
    without_gradient: tuple[str, ...] = ()
    wants_to_stop: bool = False
    # Held while callbacks show a super epoch; whoever takes it for good keeps all as it is then.
    showing: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    # The same, as all processes have agreed on it.
    stopped: bool = False
    # What is kept and compared, and why if it is not the last one.
    optimizer: Any = None
    taken: dict[str, Any] | None = None

    @property
    def state(self) -> "l2o.MetaState | None":
        known = self.solution or self.latest
        return self.begun if known is None else known.state

    @property
    def done(self) -> int:
        return 0 if self.state is None else int(self.state.super_epoch)

    @property
    def failed(self) -> "Sequence[l2o.FailedObjective]":
        return self.failed_so_far if self.solution is None else self.solution.failed

    @property
    def skipped(self) -> int:
        from l2o_eqx._meta_step import count_skipped

        return 0 if self.state is None else int(count_skipped(self.state.meta_optimizer_state).max())


def run(given: Table, out: Path | None, output: "Output", cadence: Cadence | None = None) -> None:
    """Trains, compares and keeps everything in a folder.

    **Arguments:**

    - `given`: a checked configuration.
    - `out`: the folder, which must not exist; `None` for one in `runs`.
    - `output`: what the user sees.
    - `cadence`: how often the state is kept.

    **Raises:** `UsageError` before anything is written; `typer.Exit(130)` after Ctrl-C; `Failure` if
    something cannot be written.
    """
    check_free(out)
    from ._run import begin

    work(begin(given, out, output, kind="train", cadence=cadence or Cadence(), describe=_intention))


def work(run: "Run") -> None:
    """Trains and compares, from wherever the run stands.

    **Raises:** as `run`.
    """
    from ._run import pretrain_first

    training, output = _Training(run), run.output
    with run.record.failing(), _rescuing(training):
        try:
            if run.parts.config.pretraining.enabled:
                pretrain_first(run)
            run_interruptibly(lambda: _meta_train(training), on_first=lambda: _ask(training))
            result = "stopped" if training.stopped else "completed"
        except KeyboardInterrupt:
            # What is left behind in compiled code must not go on writing, or what is said is no longer true.
            training.showing.acquire(timeout=_PATIENCE_SECONDS)
            result = "stopped"
        say = output.say
        run_interruptibly(lambda: _save(training), on_first=lambda: say("Saving the optimizer."))
        if result == "stopped":
            _stop(training)
        try:
            comparisons, learners = run_interruptibly(lambda: _compare(training))
        except KeyboardInterrupt:
            files = _finish(training, "completed", comparison="interrupted")
            output.say(
                f"Interrupted. The trained optimizer is in {run.folder}; "
                f"`l2o resume {run.folder}` compares it."
            )
            output.result({"folder": str(training.run.folder), "result": "stopped", "files": files})
            interrupted()
        from ._comparison import facts_of, show_comparisons, title_of

        # On a full disk, what is shown is all that one has of it.
        show_comparisons(comparisons, output, title_of(facts_of(run.parts, 0)))
        _keep(training, comparisons, learners)
        _finish(training, "completed", comparison="completed")
        _report(training, comparisons)


@contextlib.contextmanager
def _rescuing(training: _Training) -> Iterator[None]:
    # What cannot be written ends a run; the optimizer is the smallest of its files, and worth the most.
    try:
        yield
    except OSError as error:
        run, done = training.run, training.done
        reason = describe(error)
        rescued = done and run_interruptibly(lambda: _rescue(training))
        with contextlib.suppress(OSError):
            run.record.finish("failed", error=reason, super_epochs_done=done)
        where = "the optimizer so far is saved, and " if rescued else ""
        raise Failure(
            f"{reason}. After {done} super epochs {where}`l2o resume {run.folder}` goes on from the last "
            "checkpoint"
        ) from None


def _rescue(training: _Training) -> bool:
    from l2o_eqx.files import write_text

    from ._run import save_optimizers
    from ._taken import taken_from

    run, state = training.run, training.state
    assert state is not None
    # The disk may be full of what can be made again, or the folder gone.
    shutil.rmtree(run.folder / "tensorboard", ignore_errors=True)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        save_optimizers(run, taken_from(state)[0], super_epochs_done=training.done)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        write_text(run.folder / CONFIG, to_toml(run.parts.config))
        (run.folder / TRAINING).mkdir(exist_ok=True)
        if training.latest is not None:
            checkpoint(run.folder, TRAINING, run.parts.config, run.cadence).save(training.latest)
    return True


def _intention(parts: "Parts", meta_parameters: int, coordinates: str) -> str:
    from ._run import describe_device
    from ._settings import show

    config, meta = parts.config, parts.config.meta
    restarts = f" x {meta.restarts} restarts" if meta.restarts > 1 else ""
    data = f"; {parts.data['description']}" if parts.data else ""
    return (
        f"Training {config.optimizer.kind} ({meta_parameters:,} meta-parameters) on "
        f"{name_of(config.objective)} ({coordinates} coordinates): {meta.super_epochs} super epochs "
        f"x {show(meta.num_steps)} steps x {meta.num_objectives} objectives{restarts}{data}; "
        f"on {describe_device()}{_untrained(parts)}"
    )


def _untrained(parts: "Parts") -> str:
    if parts.config.trainer.kind == SEARCH:
        return ""
    # Of strategies whose windows may leave a rest.
    num_trained_steps = getattr(parts.strategy, "num_trained_steps", lambda num_steps: num_steps)
    rests = {length - num_trained_steps(length) for length in parts.lengths}
    rest = max(rests)
    if not rest:
        return ""
    if parts.strategy.begins_anywhere():
        return f". Windows begin anywhere (--random-phase): {rest} steps of each super epoch train nothing"
    what = (
        "step of each super epoch fills no window and trains"
        if rest == 1
        else "steps of each super epoch fill no window and train"
    )
    last = "The last" if len(rests) == 1 else "Up to the last"
    return f". {last} {rest} {what} nothing (--remainder)"


def _meta_train(training: _Training) -> None:
    import warnings

    from l2o_eqx._devices import any_process
    from l2o_eqx._zero_gradients import describe_zero_gradients
    from l2o_eqx.callbacks import MetricsWriter, median_over_restarts

    from ._metrics import FILE, Events

    parts, meta = training.run.parts, training.run.parts.config.meta
    folder, output = training.run.folder, training.run.output
    training.begun = state_of(folder, TRAINING, parts.config)
    with output.progress("training", meta.super_epochs, "compiling") as update, warnings.catch_warnings():
        # It is said in words.
        warnings.simplefilter("ignore", l2o.ZeroGradientWarning)
        warnings.simplefilter("ignore", l2o.SkippedUpdatesWarning)
        warnings.simplefilter("ignore", l2o.NanWarning)

        def begin(progress: "l2o.Progress") -> None:
            del progress
            training.showing.acquire()

        def show(progress: "l2o.Progress") -> "l2o.StopTraining | None":
            try:
                return show_it(progress)
            finally:
                training.showing.release()

        def show_it(progress: "l2o.Progress") -> "l2o.StopTraining | None":
            training.latest = progress
            training.failed_so_far += progress.failed
            metrics = median_over_restarts(progress.metrics)
            status = f"meta-loss {metrics['meta_loss']:.4g}, final loss {metrics['final_loss']:.4g}"
            update(progress.super_epoch, status)
            if progress.skipped_all:
                output.say(progress.skipped_all, "yellow")
            if progress.nan is not None:
                output.say(str(progress.nan), "yellow")
                first = training.run.record.facts.get("first_nan", str(progress.nan))
                training.run.record.add(first_nan=first)
            if progress.without_gradient:
                training.without_gradient = progress.without_gradient
                output.say(describe_zero_gradients(progress.without_gradient), "yellow")
            return l2o.StopTraining("Ctrl-C") if training.wants_to_stop else None

        common: dict[str, Any] = dict(
            restarts=training.run.restarts,
            key=training.run.key,
            callbacks=[
                begin,
                # Before the checkpoint, which must not be later than the last line.
                MetricsWriter(folder / FILE),
                Events(folder / "tensorboard", output),
                checkpoint(folder, TRAINING, parts.config, training.run.cadence),
                show,
            ],
            state=training.begun,
        )
        if parts.config.trainer.kind == SEARCH:
            training.solution = l2o.policy_search(
                training.run.optimizer, parts.family, **parts.searching, **common
            )
        else:
            training.solution = l2o.meta_train(
                training.run.optimizer, parts.family, parts.strategy, **parts.training, **common
            )
    training.stopped = any_process(training.wants_to_stop)


def _ask(training: _Training) -> None:
    training.wants_to_stop = True
    which = "the first" if training.latest is None else "this"
    training.run.output.say(f"Stopping when {which} super epoch is over. Ctrl-C again stops at once.")


def _stop(training: _Training) -> None:
    saved = _finish(training, "stopped")
    if training.state is None:
        training.run.output.say(
            "Stopped before the first super epoch was over: the optimizer is untrained and was not "
            f"saved. `l2o resume {training.run.folder}` begins again."
        )
    else:
        epochs = f"{training.done} of {training.run.parts.config.meta.super_epochs}"
        training.run.output.say(
            f"Stopped after {epochs} super epochs, without a comparison. The optimizer so far is "
            f"in {training.run.folder / saved[0]}; `l2o resume {training.run.folder}` goes on, "
            f"`l2o evaluate {training.run.folder}` compares it as it is."
        )
    training.run.output.result({"folder": str(training.run.folder), "result": "stopped", "files": saved})
    interrupted()


def _finish(training: _Training, result: Literal["completed", "stopped"], **facts: Any) -> list[str]:
    from ._run import optimizer_files

    done = training.done
    files = optimizer_files(training.run.parts.config) if done else []
    skipped = training.skipped
    lost = list(training.solution.failed_restarts) if training.solution else []
    if training.taken is not None:
        facts["taken"] = training.taken
    training.run.record.finish(
        result,
        super_epochs_done=done,
        skipped_updates=skipped,
        failed_objectives=[_described(failed) for failed in training.failed],
        without_gradient=list(training.without_gradient),
        failed_restarts=lost,
        optimizers=files,
        **facts,
    )
    if skipped:
        training.run.output.say(f"{counted(skipped, 'meta-update')} left out: the gradient was not finite.")
    if lost and not _all_failed(training):
        training.run.output.say(
            f"restart {', '.join(map(str, lost))} has failed: {_reason(training)}", "yellow"
        )
    if training.failed:
        training.run.output.say(
            f"{counted(len(training.failed), 'objective')} left out from where the loss was not finite; "
            "run.json has the keys."
        )
    return files


def _described(failed: "l2o.FailedObjective") -> dict[str, Any]:
    import jax.random as jr

    facts = {"super_epoch": failed.super_epoch, "restart": failed.restart}
    family = {"family": failed.family} if failed.family else {}
    return {**facts, **family, "key": jr.key_data(failed.key).tolist()}


def _save(training: _Training) -> None:
    from l2o_eqx import plots
    from l2o_eqx.callbacks import read_metrics

    from ._metrics import FILE
    from ._pictures import draw
    from ._run import save_optimizers
    from ._taken import describe_taken, taken_from

    state = training.state
    if state is None:
        return
    run, done = training.run, training.done
    training.optimizer, training.taken = taken_from(state)
    if training.taken is None:
        save_optimizers(run, training.optimizer, super_epochs_done=done)
    else:
        save_optimizers(run, training.optimizer, super_epochs_done=done, taken=training.taken)
        save_optimizers(run, state.optimizer, last=True, super_epochs_done=done)
        run.output.say(describe_taken(training.taken, done))
    if training.solution is None and training.latest is not None:
        # Left behind in compiled code, it has not kept where it ended.
        checkpoint(run.folder, TRAINING, run.parts.config, run.cadence).save(training.latest)
    draw(
        run.folder / "training.png",
        lambda path: plots.plot_training(read_metrics(run.folder / FILE), path),
        run.output,
    )


def _compare(training: _Training) -> "tuple[Comparisons, dict[str, Any]]":
    from ._comparison import LEARNED, UNTRAINED, run_comparisons
    from ._few_shot import JOINT, can_be_joint, train_jointly

    run = training.run
    optimizers = {LEARNED: training.optimizer, UNTRAINED: run.optimizer}
    if can_be_joint(run.parts, run.optimizer):
        optimizers[JOINT] = train_jointly(
            run.optimizer,
            run.parts,
            run.output,
            restarts=run.restarts,
            key=run.comparison_key,
            **run.kept(JOINT_TRAINING),
        )
    comparisons = run_comparisons(
        optimizers,
        run.parts,
        run.output,
        restarts=run.restarts,
        key=run.comparison_key,
        keep_in=run.folder,
    )
    return comparisons, {name: optimizers[name] for name in (LEARNED, JOINT) if name in optimizers}


def _keep(training: _Training, comparisons: "Comparisons", learners: dict[str, Any]) -> None:
    from ._comparison import facts_of, forget_partial, title_of, write_comparisons
    from ._few_shot import write_fits

    run = training.run
    facts = facts_of(run.parts, run.parts.config.seed)
    write_comparisons(run.folder, comparisons, run.output, title=title_of(facts), facts=facts)
    write_fits(run.folder, learners, run.parts, run.output, restarts=run.restarts)
    forget_partial(run.folder)


def _report(training: _Training, comparisons: "Comparisons") -> None:
    from ._comparison import numbers_of
    from ._run import optimizer_files

    folder, output = training.run.folder, training.run.output
    files = optimizer_files(training.run.parts.config)
    first = folder / files[0]
    output.say(
        f"Everything is in {folder}. Compare on other draws, longer, or on something else: "
        f"`l2o evaluate {folder}`. In Python: `l2o_eqx.load({str(first)!r})`."
    )
    result = {"folder": str(folder), "result": "completed", "files": files, **numbers_of(comparisons)}
    if training.taken is not None:
        result["taken"] = training.taken
    if training.run.pretraining:
        result["pretraining"] = training.run.pretraining
    output.result(result)
    if _all_failed(training):
        raise Failure(f"the training has failed: {_reason(training)}")


def _all_failed(training: _Training) -> bool:
    lost = training.solution.failed_restarts if training.solution else ()
    return len(lost) == (training.run.restarts or 1)


def _reason(training: _Training) -> str:
    import numpy as np

    assert training.solution is not None
    if not np.isfinite(training.solution.metrics["final_loss"]).any():
        return "no loss was ever finite at the end of a run; is the objective, where it begins?"
    return (
        "no meta-gradient of its last super epoch was finite. Begin with smaller steps, or a smaller "
        "--meta-learning-rate."
    )

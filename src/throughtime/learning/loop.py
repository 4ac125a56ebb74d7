"""The training loop: truncated backpropagation through time over a stream, or whole sequences."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor, nn

from throughtime.errors import UserError
from throughtime.learning.cadence import Cadence, Standing
from throughtime.learning.checkpoint import (
    Snapshot,
    flatten_state,
    has_checkpoint,
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
    shape_of_state,
    unflatten_state,
    write_checkpoint,
)
from throughtime.learning.interruption import Interrupted, Requests, stop_requests
from throughtime.learning.learner import Learner
from throughtime.learning.metrics import MetricsFile
from throughtime.learning.problem import Problem
from throughtime.learning.processes import make_fabric
from throughtime.learning.progress import Teller
from throughtime.learning.randomness import (
    determinism,
    random_state,
    random_state_kept,
    restore_random_state,
    seed_all,
)
from throughtime.learning.run_folder import CHECKPOINT, METRICS, MODEL, fill, refuse_overwriting, save_weights
from throughtime.learning.schedules import rate_at
from throughtime.learning.storage import full_disk_told, tensor_bytes
from throughtime.learning.training import BOUNDS, MAY_NOT_CHANGE, Training, spelled

if TYPE_CHECKING:
    from lightning_fabric import Fabric

OnRecord = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    steps: int
    seconds: float
    stopped: str  # "steps", "minutes" or "patience"
    validation: dict[str, float]  # of the weights that were kept; {} without held-out data
    best_step: int  # the step these weights are from


def fit(
    problem: Problem,
    out: Path | str,
    training: Training,
    *,
    resume: bool = False,
    items: str = "items",
    on_record: OnRecord | None = None,
    console: Console | None = None,
) -> Result:
    """Trains a problem's model and leaves the run in a folder; see `throughtime.learning.run_folder`.

    At the end the model holds the weights that were kept, and so does ``model.safetensors``. The state that a step
    leaves is cut from its graph and handed to the next as plain nested tuples: with windows of a stream this is
    truncated backpropagation through time; a problem whose ``Loss.state`` is None has whole sequences.

    Ctrl-C or SIGTERM ends the step at hand and writes a checkpoint. A run that was ended at any moment, be it by
    SIGKILL, goes on with ``resume=True``; bounded by steps or epochs it ends in bitwise the weights of a run that was
    not ended.

    Args:
        problem: the model and its data.
        out: the run's folder, made where it is not there.
        training: the settings.
        resume: go on from the last checkpoint in the folder, or begin where there is none.
        items: what ``Loss.count`` counts, for the display ("characters").
        on_record: called, in the first process, with each record before it goes to metrics.jsonl, while the
            parameters still have their gradients; what it returns is added to the record.
        console: where to tell of the progress; stderr unless given.

    Raises:
        UserError: the folder holds a run and ``resume`` is not asked for; what it holds is damaged or of other
            settings; the loss is not finite; the disk is full.
        Interrupted: (a `KeyboardInterrupt`) a signal came; the checkpoint is written.
    """
    fabric = make_fabric(training)
    with determinism(training.deterministic), stop_requests(impatient=fabric.world_size == 1) as requests:
        run = _Run(problem, Path(out), training, fabric, resume, items, on_record, console, requests)
        with contextlib.closing(run):
            return run.go()


class _Run:
    def __init__(
        self,
        problem: Problem,
        out: Path,
        training: Training,
        fabric: Fabric,
        resume: bool,
        items: str,
        on_record: OnRecord | None,
        console: Console | None,
        requests: Requests,
    ) -> None:
        if problem.steps_per_epoch < 1:
            raise UserError("the training data are shorter than one batch; give more data or a smaller batch")
        self.problem, self.out, self.training, self.fabric = problem, out, training, fabric
        self.on_record, self.requests = on_record, requests
        self.first = fabric.is_global_zero
        self.several = fabric.world_size > 1
        self.on_cpu = fabric.device.type == "cpu"
        self.cadence = Cadence(training, problem.steps_per_epoch)
        self.teller = Teller(items, console, quiet=not self.first)
        self.validates = True  # until a validation says that there are no data for it
        self.carried: Any = None
        self.best: dict[str, Tensor] | None = None
        self.step_takes = 0.0
        self.rate = training.rate
        self.loss_since: Any = 0.0  # sum over items since the last line of metrics; on the device, if that is no CPU
        self.norm_since: Any = 0.0  # sum over steps
        self.saved_step: int | None = None
        self.changed: dict[str, tuple[Any, Any]] = {}
        self.metrics: MetricsFile | None = None

        refuse_overwriting(out, resume)
        seed_all(training.seed + fabric.global_rank)
        self.learner = Learner(problem, training, fabric)
        self.model = self.learner.model
        self.standing = Standing()
        resumed = resume and has_checkpoint(out)
        if resumed:
            self._restore(read_checkpoint(out))
        self.clock_zero = time.monotonic() - self.standing.seconds
        if self.first:
            with full_disk_told(out):
                out.mkdir(parents=True, exist_ok=True)
            self.metrics = MetricsFile(out / METRICS, self.standing.metrics_position)
            self._introduce(resumed)

    def go(self) -> Result:
        standing, cadence = self.standing, self.cadence
        if not standing.stopped:
            self.model.train()
            self.teller.begin(cadence.share(standing))
            over = self._over()
            while not over:
                self._take_step()
                over = self._over()
                if self.validates and (over or cadence.validation_due(standing)):
                    self._validate()
                    over = over or self._over()  # patience may have run out, or the time
                elif over or cadence.log_due(standing):
                    self._log({})
                elif self.teller.due():
                    self._tell()
                if self.requests.signal:
                    self._stop()
                if not over and cadence.checkpoint_due(standing):
                    self._save()
            if self.validates and standing.validated_step != standing.step:  # over before the first step
                self._validate()
            standing.stopped = over
            self._save()
        return self._finish()

    def close(self) -> None:
        self.teller.close()
        if self.metrics is not None:
            self.metrics.close()

    def _over(self) -> str:
        return self.cadence.over(self.standing, self.step_takes, self.validates)

    # One step

    def _take_step(self) -> None:
        standing = self.standing
        before = standing.seconds
        self.rate = rate_at(self.cadence.position(standing), self.training, standing.plateau)
        self.learner.forget_gradients()
        taken, self.carried = self.learner.step(
            standing.step, self.carried, self.rate, self._seconds(), self.requests.signal
        )
        standing.step += 1
        if self.several:
            standing.seconds, self.requests.signal = taken.elapsed, taken.signal
        else:
            standing.seconds = self._seconds()
        self.step_takes = standing.seconds - before
        standing.items += taken.items
        standing.items_since += taken.items
        if self.on_cpu:
            self.loss_since += float(taken.loss)
            self.norm_since += float(taken.norm)
            self._check_finite()
        else:  # looked at when it is time for a line: nothing waits for the device
            self.loss_since = self.loss_since + taken.loss
            self.norm_since = self.norm_since + taken.norm

    def _check_finite(self) -> None:
        """Before anything is kept of what may be ruined.

        Raises:
            UserError: the loss or the gradient is not finite.
        """
        loss, norm = float(self.loss_since), float(self.norm_since)
        if self.training.precision == "16-mixed":
            norm = 0.0  # such a step is left out and the scale lowered
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = "gradient" if math.isfinite(loss) else "loss"
        where = f"at step {self.standing.step:,}"
        if not self.on_cpu:
            where = f"between steps {self.standing.logged_step + 1:,} and {self.standing.step:,}"
        kept = "nothing was saved yet"
        if self.saved_step is not None:
            kept = (
                f"the checkpoint of step {self.saved_step:,} stands, and --resume goes on from it with what you change"
            )
        clip = self.training.clip_norm
        clipping = f"--clip-norm {clip / 4:g}" if clip else "clipping (--clip-norm 1)"
        raise UserError(
            f"the {what} is {loss if what == 'loss' else norm} {where}: training has diverged; try a lower learning "
            f"rate (--learning-rate {self.training.rate / 4:g}) or {clipping}; {kept}"
        )

    # What is due now and then

    def _validate(self) -> None:
        standing = self.standing
        if not self.on_cpu:
            self._check_finite()
        began = time.monotonic()
        measures: dict[str, float] = {}
        if self.first:
            self.model.eval()
            with self.learner.averaged(), random_state_kept(), torch.no_grad(), self.fabric.autocast():
                measures = {name: float(value) for name, value in self.problem.validate().items()}
            self.model.train()
        takes, standing.seconds = time.monotonic() - began, self._seconds()
        if self.several:
            measures, takes, standing.seconds = self.fabric.broadcast((measures, takes, standing.seconds))
        standing.validated_step, standing.validated_seconds = standing.step, standing.seconds
        standing.validation, standing.validation_takes = measures, takes
        self.validates = bool(measures)
        if measures:
            watched = next(iter(measures.values()))
            improved = math.isfinite(watched) and (standing.best is None or watched < standing.best)
            standing.since_best = 0 if improved else standing.since_best + 1
            standing.plateau.see(improved, self.training)
            if improved:
                standing.best, standing.best_step, standing.best_validation = watched, standing.step, measures
                if self.first and self.training.keep == "best":
                    self.best = self._usable()
        self._log(measures)

    def _record(self, measures: Mapping[str, float]) -> dict[str, Any]:
        standing = self.standing
        steps = standing.step - standing.logged_step
        passed = standing.seconds - standing.logged_seconds - (standing.validation_takes if measures else 0.0)
        norm = float(self.norm_since) / steps if steps else math.nan
        return {
            "step": standing.step,
            "seconds": round(standing.seconds, 3),
            "epoch": round(standing.step / self.problem.steps_per_epoch, 4),
            "loss": float(self.loss_since) / standing.items_since if standing.items_since else None,
            **{f"validation_{name}": value for name, value in measures.items()},
            "learning_rate": self.rate,
            "gradient_norm": norm if math.isfinite(norm) else None,
            "items_per_second": round(standing.items_since / passed, 1) if passed > 0 else None,
        }

    def _log(self, measures: Mapping[str, float]) -> None:
        """A line of metrics.jsonl; the means in it begin at the line before."""
        standing = self.standing
        if not self.on_cpu:
            self._check_finite()
        if self.metrics is not None and standing.step > standing.logged_step:  # one line a step
            record = self._record(measures)
            if self.on_record is not None:
                record.update(self.on_record(record) or {})
            self.metrics.append(record)
            if measures:
                self.teller.validated(record, self.cadence.share(standing), self.cadence.left(standing))
            elif self.teller.due():
                self.teller.word(record, self.cadence.share(standing), self.cadence.left(standing))
        standing.logged_step, standing.logged_seconds = standing.step, standing.seconds
        standing.items_since, self.loss_since, self.norm_since = 0, 0.0, 0.0

    def _tell(self) -> None:
        record = self._record({})
        self.teller.word(record, self.cadence.share(self.standing), self.cadence.left(self.standing))

    def _stop(self) -> None:
        self._save()
        raise Interrupted(
            f"stopped at step {self.standing.step:,}; the checkpoint is in {self.out / CHECKPOINT}: go on with the "
            "same command and --resume",
            self.requests.signal,
        )

    # Keeping and going on

    def _save(self) -> None:
        standing = self.standing
        if not self.on_cpu:
            self._check_finite()
        began = time.monotonic()
        own = {f"random.{name}": value for name, value in random_state().items()}
        own.update(flatten_state(self.carried, "carried"))
        shape = json.dumps(shape_of_state(self.carried)).encode()
        own["shape"] = torch.frombuffer(bytearray(shape), dtype=torch.uint8)
        processes = self._gathered(own)
        if self.metrics is not None:
            self.metrics.sync()
            standing.metrics_position = self.metrics.position
            standing.loss_since, standing.norm_since = float(self.loss_since), float(self.norm_since)
            about = {
                "standing": dataclasses.asdict(standing),
                "training": self.training.to_json(),
                "processes": self.fabric.world_size,
                "scaler": self.fabric.strategy.precision.state_dict(),
            }
            tensors = {
                "weights": self.model.state_dict(),
                "optimizer": optimizer_tensors(self.learner.optimizer),
                **{f"process-{k}": process for k, process in enumerate(processes)},
            }
            if self.best is not None:
                tensors["best"] = self.best
            if self.learner.average is not None:
                tensors["average"] = self.learner.average.tensors()
            write_checkpoint(self.out, standing.step, Snapshot(about, tensors))
            save_weights(self.out, self._kept())
        self.saved_step = standing.step
        takes, standing.seconds = time.monotonic() - began, self._seconds()
        if self.several:
            takes, standing.seconds = self.fabric.broadcast((takes, standing.seconds))
        standing.checkpoint_takes, standing.checkpoint_seconds = takes, standing.seconds

    def _gathered(self, own: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """What each process has to keep, in the first one."""
        if not self.several:
            return [own]
        content = torch.frombuffer(bytearray(tensor_bytes("process", own)), dtype=torch.uint8).to(self.fabric.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=content.device) for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather(sizes, torch.tensor([content.numel()], device=content.device))
        longest = max(int(size) for size in sizes)
        parts = [content.new_zeros(longest) for _ in sizes]
        torch.distributed.all_gather(parts, nn.functional.pad(content, (0, longest - content.numel())))
        pairs = zip(parts, sizes, strict=True)
        return [safetensors.torch.load(part[: int(size)].cpu().numpy().tobytes()) for part, size in pairs]

    def _restore(self, snapshot: Snapshot) -> None:
        """Puts everything where the checkpoint found it.

        Raises:
            UserError: it is of another model, of other settings that cannot change, or of other processes.
        """
        about, tensors = snapshot.about, snapshot.tensors
        if about["processes"] != self.fabric.world_size:
            raise UserError(
                f"{self.out} was begun with {about['processes']} processes, not {self.fabric.world_size}; "
                "go on with as many"
            )
        before, now = about["training"], self.training.to_json()
        for name in MAY_NOT_CHANGE:
            was = before.get(name)  # a run of an older version has fewer settings
            if was != now[name]:
                raise UserError(
                    f"{self.out} was begun with {spelled(name)} {was}, not {now[name]}; go on with the same, "
                    "or name another folder"
                )
        self.changed = {name: (before.get(name), now[name]) for name in now if before.get(name) != now[name]}
        fill(self.model, tensors["weights"], self.out / CHECKPOINT)
        restore_optimizer(self.learner.optimizer, tensors["optimizer"])
        self.fabric.strategy.precision.load_state_dict(about["scaler"])
        if self.learner.average is not None:
            self.learner.average.restore(tensors["average"])
        self.best = tensors.get("best")
        self.standing = Standing.from_json(about["standing"])
        self.loss_since, self.norm_since = self.standing.loss_since, self.standing.norm_since
        self.saved_step = self.standing.step
        if self.changed.keys() & {*BOUNDS, "patience"}:
            self.standing.stopped = ""
        own = tensors[f"process-{self.fabric.global_rank}"]
        shape = json.loads(own["shape"].numpy().tobytes())
        carried = unflatten_state(own, shape, "carried")
        self.carried = carried if self.on_cpu else self.fabric.to_device(carried)
        restore_random_state({n[len("random.") :]: value for n, value in own.items() if n.startswith("random.")})

    def _kept(self) -> Mapping[str, Tensor]:
        return self._usable() if self.best is None else self.best

    def _usable(self) -> dict[str, Tensor]:
        """The weights to use as they are now: their mean, where one is kept."""
        with self.learner.averaged():
            return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def _finish(self) -> Result:
        standing = self.standing
        best = self.training.keep == "best" and bool(standing.best_validation)
        validation = standing.best_validation if best else standing.validation
        step = standing.best_step if best else standing.step
        if self.first:
            kept = self._kept()
            save_weights(self.out, kept)
            self.model.load_state_dict(kept)
            self.teller.close()
            self.teller.finished(standing.step, standing.seconds, validation, step, self.out / MODEL)
        self.learner.share_weights()
        self.learner.forget_gradients()
        self.model.eval()
        return Result(standing.step, standing.seconds, standing.stopped, validation, step)

    # Telling

    def _introduce(self, resumed: bool) -> None:
        t, tell = self.training, self.teller.line
        count = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        clipping = [f"to norm {t.clip_norm:g}"] if t.clip_norm else []
        clipping += [f"to value {t.clip_value:g}"] if t.clip_value is not None else []
        bound = next(f"{getattr(t, name):g} {name}" for name in BOUNDS if getattr(t, name) is not None)
        where = str(self.fabric.device) + (f" in {self.fabric.world_size} processes" if self.several else "")
        tell(
            f"training {count:,} parameters for {bound} on {where}: {t.optimizer}, learning rate {t.rate:g} "
            f"({t.schedule}), gradients {'clipped ' + ' and '.join(clipping) if clipping else 'not clipped'}"
            + ("" if t.average_weights is None else f", weights averaged ({t.average_weights:g})")
        )
        if not resumed:
            return
        tell(f"going on from step {self.standing.step:,}")
        for name, (was, now) in self.changed.items():
            tell(f"with {spelled(name)} {now} where it was {was}")
        if self.metrics is not None and self.metrics.lost:
            tell(f"{self.metrics.path} is shorter than the checkpoint knows it: lines of it are lost")

    def _seconds(self) -> float:
        return time.monotonic() - self.clock_zero

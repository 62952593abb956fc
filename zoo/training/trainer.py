"""The training loop: one state, advanced a step at a time, that can be left and gone on with.

What a step computes depends on the preset and the checkpoint alone: the order of the data comes
from one integer, random numbers from saved states. A run that was killed gives, from its last
checkpoint on, the same numbers bit for bit on one device.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.training import checkpoint
from zoo.training.batches import Batches
from zoo.training.checkpoint import Run
from zoo.training.config import Train, to_json
from zoo.training.files import remove_unfinished
from zoo.training.log import Diverged, Log, Report, tensorboard
from zoo.training.pretrained import Pretrained
from zoo.training.processes import Objective, Processes, full, joined, synchronise
from zoo.training.system import Row, System, mixed


def rate(train: Train, step: int) -> float:
    """The learning rate of the step after ``step`` others."""
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    done = min(1.0, (step - train.warmup) / max(1, train.steps - train.warmup))
    left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return train.lr * (train.floor + (1 - train.floor) * left[train.schedule])


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    step: steps done, of those wanted. seconds: the time they took in all, evaluation included.
    rows: of the last evaluation. last: the numbers last logged. signal: what stopped it, if one.
    """

    step: int
    seconds: float
    rows: list[Row]
    last: Row
    signal: int | None = None


class Trainer:
    """Trains one model of ``system`` as ``run.preset`` says.

    run: what is to be trained; where ``resume`` is given, how far it had come.
    out: the folder of checkpoints and metrics; None keeps nothing.
    resume: a checkpoint to go on from.
    Raises ConfigError, and LoadError for a checkpoint that does not fit.
    """

    def __init__(
        self,
        system: System,
        run: Run,
        *,
        out: Path | None = None,
        resume: Path | None = None,
        processes: Processes | None = None,
        report: Report | None = None,
        events: bool = False,
    ):
        self.system, self.run, self.out = system, run, out
        self.processes = p = processes or Processes()
        self.preset, self.train = run.preset, run.preset.train
        self.report = report or Report()
        self.device = p.device
        torch.manual_seed(self.train.seed)
        self.model = system.build(self.preset.model, run.reference).to(p.device)
        if resume is not None:
            checkpoint.load_model(resume, self.model)
        autocast = getattr(torch, self.train.autocast) if self.train.autocast else None
        objective = Objective(system, self.model, autocast)
        self.objective = joined(objective, p, self.train.parallel).train()
        self.parameters = [q for q in self.model.parameters() if q.requires_grad]
        groups = system.parameter_groups(self.model, self.train)
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.train.lr, betas=self.train.betas, eps=self.train.eps, fused=True
        )
        self.scales = [g.pop("lr_scale", 1.0) for g in self.optimizer.param_groups]
        self.batches = Batches(system, self.preset, system.data(self.preset), p.rank, p.world)
        self.step = run.step
        self.batches.position = run.position
        torch.manual_seed(mixed(self.train.seed, 1 + p.rank))
        if resume is not None:
            checkpoint.load_optimizer(resume, self.model, self.optimizer)
            if not checkpoint.load_random(resume, p.rank, p.device):
                torch.manual_seed(mixed(self.train.seed, 1 + p.rank, run.step))
        keeps = out if p.first else None
        if keeps is not None:
            keeps.mkdir(parents=True, exist_ok=True)
            remove_unfinished(keeps)
            remove_unfinished(keeps / "checkpoints")
        writer = tensorboard(out / "tensorboard", run.step) if events and keeps else None
        self.log = Log(keeps, self.report, run.log, writer)
        self._began = time.monotonic()
        self._saved = self._began
        self._signal: int | None = None
        self._rows: list[Row] = []
        self._latest: tuple[int, dict[str, Any]] | None = None

    @property
    def seconds(self) -> float:
        """Since the run began, stops left out."""
        return self.run.seconds + time.monotonic() - self._began

    def fit(self, seconds: float | None = None) -> Outcome:
        """Train until the preset's steps are done, a signal comes, or ``seconds`` have passed.

        Then it has been evaluated, if it is done or the time is up, and saved. SIGINT and SIGTERM
        let the step finish. Raises Diverged for a loss that is no number, and saves nothing then.
        """
        train = self.train
        self._began = self._saved = time.monotonic()
        deadline = math.inf if seconds is None else self._began + seconds
        self.report.started(self.run.preset_name, self.step, train.steps)
        found, rows = self.log.found
        stopped, fresh = False, self._any(found == self.step)  # killed after its last checkpoint
        if fresh:
            self._rows = rows
        try:
            with self._signals(), torch.enable_grad():
                while self.step < train.steps:
                    stopped, late, save = self._agreed(deadline)
                    if stopped or late:
                        break
                    if save:
                        self.save()
                    self._one()
                    fresh = bool(train.evaluate_every) and self.step % train.evaluate_every == 0
                    if fresh:
                        self._evaluate()
                if not stopped and not fresh:
                    if self._latest is not None and self._latest[0] != self.log.step:
                        self.log.add(*self._latest)  # the time was up between two rows
                    self._evaluate()
                self.save()
        finally:
            self.log.close()
            self.report.ended()
        number = (self._signal or signal.SIGTERM) if stopped else None
        return Outcome(self.step, self.seconds, self._rows, self.log.last, number)

    # --- a step ---

    def _one(self) -> None:
        """One step of the optimizer."""
        train = self.train
        lr = rate(train, self.step)
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = lr * scale
        loss, metrics = self._gradients()
        norm = None
        if train.clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, train.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        more = self.system.on_step(self.model, self.step)
        values: dict[str, Any] = {"loss": loss, "lr": lr}
        if norm is not None:
            values["grad_norm"] = full(norm)
        values |= {k: v.detach() for k, v in {**metrics, **(more or {})}.items()}
        self._latest = self.step, values | {"seconds": round(self.seconds, 3)}
        if self._logs():
            self.log.add(*self._latest)
        self.report.stepped(self.step)

    def _logs(self) -> bool:
        every = self.train.log_every
        return self.step == self.train.steps or (bool(every) and self.step % every == 0)

    def _gradients(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of the mean over the whole batch; that mean, and the metrics' means."""
        pieces = [self._moved(b) for b in self.batches.take()]
        world = self.processes.world
        if world == 1 and len(pieces) == 1:
            loss, metrics = self.objective(pieces[0], self.device.type)
            loss.backward()
            return loss.detach(), metrics
        weights = [torch.as_tensor(self.system.weight(b)).double() for b in pieces]
        total = self.processes.sum(sum(weights).to(self.device, copy=True))  # type: ignore[union-attr]
        sums: dict[str, Tensor] = {}
        for k, (batch, weight) in enumerate(zip(pieces, weights, strict=True)):
            synchronise(self.objective, k == len(pieces) - 1)
            loss, metrics = self.objective(batch, self.device.type)
            share = (weight.to(self.device) / total).to(loss.dtype)
            (loss * (share * world)).backward()  # the processes' gradients are averaged
            for name, value in ({"loss": loss} | metrics).items():
                sums[name] = sums.get(name, 0) + value.detach().double() * share
        if world > 1:
            every = self.processes.sum(torch.stack(list(sums.values())))
            sums = dict(zip(sums, every.unbind(), strict=True))
        return sums.pop("loss"), sums

    def _moved(self, batch: Any) -> Any:
        """The tensors of a batch on the device."""
        if self.device.type == "cpu":
            return batch
        if isinstance(batch, Tensor):
            return batch.to(self.device, non_blocking=True)
        if isinstance(batch, dict):
            return {k: self._moved(v) for k, v in batch.items()}
        if isinstance(batch, list | tuple):
            parts = [self._moved(v) for v in batch]
            return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
        return batch

    # --- what interrupts it ---

    def _agreed(self, deadline: float) -> tuple[bool, bool, bool]:
        """Whether a signal came, the time is up, a checkpoint is due: the same everywhere."""
        every, after = self.train.checkpoint_every, self.train.checkpoint_seconds
        now = time.monotonic()
        told, late = self._signal is not None, now >= deadline
        save = bool(after) and now - self._saved >= after
        told, late, save = self._any(told, late, save)
        save = save or (bool(every) and self.step % every == 0)
        return told, late, save and self.step > self.run.step

    def _any(self, *mine: bool) -> Any:
        """Each of ``mine`` or'ed over the processes: a list, or one for one."""
        every: list[bool] = list(mine)
        if self.processes.world > 1:
            values = torch.tensor(mine, dtype=torch.float32, device=self.device)
            every = [v > 0 for v in self.processes.sum(values).tolist()]
        return every if len(every) > 1 else every[0]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the step finish, the second has its usual effect."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}

        def stop(number: int, frame: Any) -> None:
            self._signal = number
            for n, handler in before.items():
                signal.signal(n, handler)

        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for n, handler in before.items():
                signal.signal(n, handler)

    # --- evaluation and checkpoints ---

    def _evaluate(self) -> None:
        """The first process evaluates and the others wait; the generators are as before."""
        model = self._whole()
        if self.processes.first and model is not None:
            self._rows = evaluated(self.system, model, self.preset, self.device)
            self.log.evaluated(self.step, self._rows)
        self.processes.wait()
        self.objective.train()

    def _whole(self) -> nn.Module | None:
        """The model in one piece: itself, or with FSDP a copy in the first process."""
        if self.processes.world == 1 or self.train.parallel == "ddp":
            return self.model
        state = checkpoint.model_state(self.model)
        if not self.processes.first:
            return None
        with torch.random.fork_rng(devices=_generators(self.device)):
            model = self.system.build(self.preset.model, self.run.reference).to(self.device)
        model.load_state_dict(state)
        return model

    def save(self) -> None:
        """A checkpoint, if there is a folder for it and none of this step; raises Diverged."""
        self._saved = time.monotonic()
        if self.out is None:
            return
        model = checkpoint.model_state(self.model)
        for name, _ in self.model.named_parameters():
            if not model[name].isfinite().all():
                raise Diverged(f"{name} is not finite at step {self.step}: nothing is saved")
        optimizer = checkpoint.optimizer_state(self.model, self.optimizer)
        random: dict[str, Tensor] = {}
        for name, state in checkpoint.random_state(self.device).items():
            gathered = self.processes.gather(state.to(self.device))
            random |= {f"{name}.{k}": s for k, s in enumerate(gathered)}
        if self.processes.first:
            at = replace(
                self.run,
                step=self.step,
                position=self.batches.position,
                log=self.log.kept(),
                seconds=round(self.seconds, 3),
            )
            config = model_config(self.system, self.model, self.preset)
            checkpoint.write(self.out, at, model, config, optimizer, random)
        self.processes.wait()
        self._saved = time.monotonic()


def evaluated(system: System, model: nn.Module, preset: Any, device: torch.device) -> list[Row]:
    """The system's rows for a model: in eval mode, no gradients, generators left as they were."""
    was = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=_generators(device)), torch.no_grad():
            torch.manual_seed(mixed(preset.train.seed, 0))
            return [dict(row) for row in system.evaluate(model, preset)]
    finally:
        model.train(was)


def model_config(system: System, model: nn.Module, preset: Any) -> dict[str, Any]:
    """What config.json holds: sizes, and what they are of."""
    family = model.model_type if isinstance(model, Pretrained) else system.name
    about = {"model_type": family, "architectures": [type(model).__name__]}
    return about | to_json(preset.model)


def _generators(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []

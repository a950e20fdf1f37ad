"""What every training stage shares: an unfinished folder with checkpoints and logs that a killed run goes on from."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from lowshot.core.artifacts import Recipe, partial_path, partial_recipe, write_json, writing
from lowshot.core.errors import InputError
from lowshot.core.state_dicts import load_state


class TrainingRun:
    """The unfinished folder of one training: `checkpoint.pt`, `log.jsonl` (one record a `step`) and TensorBoard events.

    Nothing here knows what is trained: a checkpoint is any dictionary of tensors, numbers and strings.
    """

    def __init__(self, folder: Path, writes: bool) -> None:
        self.folder, self.writes = folder, writes
        self.log_file, self.checkpoint = folder / "log.jsonl", folder / "checkpoint.pt"
        self.events = SummaryWriter(str(folder / "tensorboard")) if writes else None

    def resume(self) -> dict | None:
        """The last checkpoint, or None at a first start. Log records that are later than it are dropped."""
        if not self.checkpoint.exists():
            if self.writes:
                self.log_file.unlink(missing_ok=True)
            return None
        checkpoint = load_state(self.checkpoint)
        if self.writes and self.log_file.exists():
            lines = self.log_file.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("}\n")]  # a kill may have cut the last one
            self.log_file.write_text("".join(line for line in whole if json.loads(line)["step"] <= checkpoint["step"]))
        return checkpoint

    def save(self, step: int, checkpoint: dict) -> None:
        """Replace the checkpoint in one step: a kill leaves either the old or the new one."""
        if not all(value.isfinite().all() for value in checkpoint["model"].values()):
            self.check_finite(math.nan, step)
        if self.writes:
            partial = self.folder / "checkpoint.writing"
            torch.save({"step": step, **checkpoint}, partial)
            partial.replace(self.checkpoint)

    def log(self, step: int, **values: float) -> None:
        """Append a record to log.jsonl and to the TensorBoard events."""
        if not self.writes:
            return
        with self.log_file.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def check_finite(self, loss: float, step: int) -> None:
        """InputError that names the step if the loss is NaN or infinite; the checkpoint stays."""
        if not math.isfinite(loss):
            kept = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint.exists() else "no checkpoint yet"
            raise InputError(f"loss is {loss} at step {step}; {kept}")


@contextmanager
def training_run(out: Path, made_from: Recipe, overwrite: bool, writes: bool = True) -> Iterator[TrainingRun]:
    """Open the unfinished folder of `out` (going on from a killed run of the same recipe), publish it when the block
    ends well.

    The block puts the finished model into `run.folder`. Only one process of several has `writes`; the others follow it.
    Raises InputError if an unfinished run of another recipe is there, unless `overwrite`.
    """
    if not writes:
        yield TrainingRun(partial_path(Path(out)), writes=False)
        return
    if not overwrite:
        refuse_other_leftover(out, made_from)
    with writing(Path(out), made_from, resumable=True) as folder:
        folder.mkdir(exist_ok=True)
        write_json(folder / "config.json", made_from)
        run = TrainingRun(folder, writes=True)
        try:
            yield run
        except BaseException:
            run.events.close()
            if not run.checkpoint.exists():
                shutil.rmtree(folder)  # nothing to go on from
            raise
        run.events.close()
        run.checkpoint.unlink(missing_ok=True)


def refuse_other_leftover(out: Path, made_from: Recipe) -> None:
    """InputError if an unfinished run with other inputs or settings stands where `out` would be made."""
    partial = partial_path(Path(out))
    stored = partial_recipe(partial)
    if stored is not None and (difference := made_from.difference(stored)):
        raise InputError(f"{partial}: an unfinished run of others ({difference}); --overwrite true throws it away")


def learning_rate(
    epoch: float,
    n_epochs: int,
    lr: float,
    schedule: str,
    step_epochs: int,
    lr_decay: float,
    warmup_epochs: int,
    warmup_lr: float,
    n_cycles: int | None = None,
) -> float:
    """The rate at a point of training: constant `warmup_lr` first, then `step` (times lr_decay every step_epochs) or
    `cosine` to zero; with `n_cycles` that many cosines one after the other, which change with whole epochs only."""
    if epoch < warmup_epochs:
        return warmup_lr
    if schedule == "step":
        return lr * lr_decay ** int(epoch // step_epochs)
    done, n_left = epoch - warmup_epochs, max(1, n_epochs - warmup_epochs)
    if n_cycles:
        n_left = max(1, n_left // n_cycles)
        done = int(done) % n_left
    return lr * 0.5 * (1 + math.cos(math.pi * done / n_left))

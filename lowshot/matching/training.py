"""Training of a matching network by SGD, one episode per step (released code of Hariharan & Girshick, ICCV 2017)."""

import torch
from lightning_fabric import Fabric
from torch import Tensor

from lowshot.core import health
from lowshot.core.progress import Progress
from lowshot.core.training import TrainingRun, last_step
from lowshot.matching.network import ClassRows, MatchingNetwork, draw_episode
from lowshot.matching.settings import MatchingSettings


class MatchingTrainer:
    """Trains `model` on episodes of `base`, the rows of `features` float32 (N, D) by class.

    The loss is the mean negative log-probability of one query per class. Episode i depends on (seed, i) only, and
    checkpoints are saved at intervals, so a resumed run gives the same weights as an uninterrupted one.
    """

    def __init__(
        self,
        settings: MatchingSettings,
        fabric: Fabric,
        run: TrainingRun,
        model: MatchingNetwork,
        features: Tensor,
        base: ClassRows,
    ) -> None:
        self.settings, self.fabric, self.run, self.model, self.base = settings, fabric, run, model, base
        self.features = features.to(fabric.device)
        self.n_way = settings.n_way or len(base.classes)
        optimizer = torch.optim.SGD(
            model.parameters(),
            settings.lr,
            settings.momentum,
            dampening=settings.dampening,
            weight_decay=settings.weight_decay,
        )
        self.network, self.optimizer = fabric.setup(model, optimizer)

    def fit(self) -> MatchingNetwork:
        """Train to the last episode (or `end_after`), from the last checkpoint if there is one. Return the network."""
        first, n_episodes = 0, self.settings.n_episodes
        if checkpoint := self.run.resume():
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])
            first = checkpoint["step"]
        last = max(first, last_step(n_episodes, self.settings.end_after))
        interval = max(1, min(500, n_episodes // 20))
        with Progress(initial=first, total=last, desc="matching", unit="episode", resumable=True) as bar:
            for start in range(first, last, interval):
                stop = min(start + interval, last)
                record = self._train_episodes(start, stop, bar)
                self.run.log(stop, **record)
                self.run.save(stop, self._states())
        if last > first:
            remedy = "Use another --lr, or more --n_episodes"
            health.warn(health.at_chance("the matching network", record["top1"], self.n_way, remedy))
        if last < n_episodes:
            self.run.ended_after = last
        return self.model

    def _states(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # the loss scale of 16-mixed
        }

    def _train_episodes(self, start: int, stop: int, bar: Progress) -> dict[str, float]:
        """Train episodes start to stop - 1. Return their mean loss and top-1 accuracy, and the learning rate."""
        sums = torch.zeros(2)
        for number in range(start, stop):
            rate = self.settings.lr * self.settings.lr_decay ** (number // self.settings.step_episodes)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            sums += torch.tensor(self._train_episode(number))
            bar.update()
        loss, top1 = (sums / (stop - start)).tolist()
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        return {"loss": loss, "top1": top1, "lr": rate}

    def _train_episode(self, number: int) -> tuple[float, float]:
        """Take one step. Return the loss and the top-1 accuracy of the queries."""
        log_probabilities = self._log_probabilities(number)
        loss = -log_probabilities.diagonal().mean()
        self.run.check_finite(loss.item(), number)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        truth = torch.arange(self.n_way, device=loss.device)
        return loss.item(), (log_probabilities.argmax(dim=1) == truth).float().mean().item()

    def _log_probabilities(self, number: int) -> Tensor:
        """Return log-probabilities (n_way, n_way). Row i is the query of class i of the episode."""
        settings = self.settings
        episode = draw_episode(self.base, self.n_way, settings.max_shots, settings.seed, number)
        support, queries = (self.features[torch.from_numpy(r)] for r in (episode.support_rows, episode.query_rows))
        labels = torch.from_numpy(episode.support_labels).to(self.features.device)
        return self.network(support[None], labels[None], queries, self.n_way)[0]

"""What a plan expects of losses: by four published laws, perhaps moved onto finished runs, or by the law of a lab."""

from dataclasses import dataclass, field
from pathlib import Path

from ..checks import ensure
from ..lab.scaling import LAW_NAME, LabLaw, Prediction, read_law
from ..stage_folder import RUNS_NAME
from .laws import LAWS, LossFit, LossLaw, MeasuredRun, fit_losses, optimum, predicted_loss, unique_optimum

LAB = "lab"  # the name of a lab's law among the laws of a plan


@dataclass(frozen=True)
class Optimum:
    """The size and data with the lowest predicted loss for an amount of compute, by one law."""

    law: str
    num_parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Expectations:
    """The laws of a plan.

    Attributes:
        laws: by name, in nats per token.
        fits: how the losses of finished runs follow from those of a law; empty without such runs, and with a lab.
        lab: law of a lab; None: without one.
        lab_folder: of that lab.
    """

    laws: dict[str, LossLaw] = field(default_factory=lambda: dict(LAWS))
    fits: dict[str, LossFit] = field(default_factory=dict)
    lab: LabLaw | None = None
    lab_folder: str | None = None

    def losses(self, num_parameters: float, tokens: float, unique_tokens: float | None) -> dict[str, float]:
        """Return the losses by law in nats per token.

        Raises:
            InputError: a calibrated loss is not above 0.
        """
        predicted = {name: predicted_loss(law, num_parameters, tokens, unique_tokens)
                     for name, law in self.laws.items()}  # fmt: skip
        return {name: self._calibrated(name, loss) for name, loss in predicted.items()}

    def prediction(self, num_parameters: float, tokens: float, unique_tokens: float | None) -> Prediction | None:
        """Return what the lab's law expects, with its interval; None without a lab."""
        return self.lab.predict(num_parameters, tokens, unique_tokens) if self.lab else None

    def ranking(self, unique_tokens: float | None) -> str:
        """Return the name of the law by which options are ranked."""
        return LAB if self.lab else "muennighoff" if unique_tokens else "besiroglu"

    def optima(self, compute_flops: float, unique_tokens: int | None) -> list[Optimum]:
        """Return the size and data with the lowest loss for C = 6 N D FLOPs, by each law."""
        found = []
        for name, law in self.laws.items():
            limited = unique_tokens if law.repeats else None
            parameters, tokens = (
                optimum(law, compute_flops) if limited is None else unique_optimum(law, compute_flops, limited)
            )
            loss = predicted_loss(law, parameters, tokens, limited)
            found.append(Optimum(name, parameters, tokens, self.fits[name](loss) if name in self.fits else loss))
        return found

    def _calibrated(self, law: str, predicted: float) -> float:
        """Return a predicted loss, moved onto the corpus of the calibrating runs if there are any."""
        if law not in self.fits:
            return predicted
        loss = self.fits[law](predicted)
        ensure(
            loss > 0,
            f"calibrate: moves the predicted loss to {loss:.2f}, which cannot be: the runs are too far from the plan. "
            "Give longer or larger runs.",
        )
        return loss


def split_folders(folders: list[str]) -> tuple[list[str], list[str]]:
    """Return those folders that are of runs, and those that are of labs."""
    labs = [name for name in folders if any((Path(name) / file).is_file() for file in (RUNS_NAME, LAW_NAME))]
    return [name for name in folders if name not in labs], labs


def make_expectations(runs: list[MeasuredRun], labs: list[str]) -> Expectations:
    """Return the laws of a plan.

    Args:
        runs: finished ones; their losses count where there is no lab.
        labs: folders of labs.

    Raises:
        InputError: several labs, a lab without a law (with the reason), or runs that cannot calibrate.
    """
    ensure(len(labs) < 2, f"calibrate={', '.join(labs)}: are several labs, and a plan uses one law. Give one of them.")
    if not labs:
        return Expectations(fits=fit_losses(runs))
    law = read_law(Path(labs[0]))
    return Expectations(laws={LAB: law.in_nats()}, lab=law, lab_folder=labs[0])

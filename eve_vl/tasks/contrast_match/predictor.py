"""The calls of runs pre-trained by contrast and matching."""

from eve_vl.predict.gradcam import Evidence
from eve_vl.predict.user_images import UserImage
from eve_vl.tasks.contrast.predictor import ContrastPredictor
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.contrast_match.task import ContrastMatch
from eve_vl.tasks.masked_signal.predictor import MaskedSignalPredictor


class ContrastMatchPredictor(MaskedSignalPredictor, ContrastPredictor):
    """Calls of a run pre-trained by contrast, matching and masked signals."""

    section = ContrastMatchConfig
    task: ContrastMatch  # pyright: ignore[reportIncompatibleVariableOverride]

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        calls = ContrastPredictor.offered(self) + MaskedSignalPredictor.offered(self)
        return tuple(dict.fromkeys(calls))

    def _evidence(
        self, images: list[UserImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        masks_word = self.task.settings.mlm_weight and positions is not None
        if masks_word or self.task.contrast.match_head is None:
            return MaskedSignalPredictor._evidence(self, images, text, positions, answer)
        return ContrastPredictor._evidence(self, images, text, positions, answer)

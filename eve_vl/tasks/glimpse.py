"""What people can look at while a run of masked signals trains.

Letters: B batch, P patches, M masked tokens, T text tokens, X values in a patch.
"""

from typing import Any

import numpy as np

from eve_vl.data.batch import MaskedPictures, MaskedTexts
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.model.embed import hide, to_pictures

NUM_ROWS = 4


def glimpse(self: Any, batch: MaskedPictures | MaskedTexts, tokenizer: Tokenizer) -> dict[str, np.ndarray | str]:
    """Return, as `Task.glimpse`, the first rows: pictures beside masked and rebuilt ones, texts above those with the best
    guesses filled in."""
    shown: dict[str, np.ndarray | str] = {}
    if self.settings.mim_weight and isinstance(batch, MaskedPictures):
        patches_BPX = self.patches(batch)
        passes = patches_BPX, hide(patches_BPX, batch.hidden_BM), self.rebuild(batch)
        columns = [to_pictures(each_BPX[:NUM_ROWS], self.config.input.patch_size) for each_BPX in passes]
        shown["original, masked, rebuilt"] = np.hstack([np.vstack(column) for column in columns])
    if self.settings.mlm_weight and isinstance(batch, MaskedTexts):
        encoded = self.encode(batch, keep=self.settings.joint_masking, mask=True)
        guessed_M = self.predict_tokens(encoded, batch).argmax(-1)
        filled_BT = batch.ids_BT.masked_scatter(batch.is_masked_BT, guessed_M)
        rows = zip(batch.ids_BT[:NUM_ROWS].tolist(), filled_BT[:NUM_ROWS].tolist(), strict=True)
        shown["texts, true and filled"] = "\n\n".join(tokenizer.decode(ids) for row in rows for ids in row)
    return shown

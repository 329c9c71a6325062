"""Train open_clip's own model, tokenizer and loss within a budget of core-seconds.

run.py starts it in a separate environment; it imports nothing of this project. Decoded images stay
in memory and captions are tokenized before the clock starts, which favours open_clip. The clock is
the processor time of one thread. The learning rate follows the used share of the budget. Called
again, it resumes from its last save (every minute).

Letters: B batch, N images, T tokens, S side of an image, 1 one grey value.
"""

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

HEAD = 64
VOCABULARY, LONGEST = 49408, 32  # tokens; names are shorter, and padding costs time
MAX_ASPECT = 4 / 3
SAVED_EVERY = 60.0  # core-seconds


def rate_at(share: float, rate: float, warmup: float) -> float:
    """Return the learning rate at a used share of the budget.

    After a linear warm-up, a cosine falls to 0.
    """
    if share < warmup:
        return rate * share / warmup
    return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warmup) / (1 - warmup))))


def rows_of(step: int, num_rows: int, batch: int, seed: int) -> np.ndarray:
    """Return the rows of a step, int64 (B,).

    Each epoch shuffles the rows again and shows each once. An incomplete batch is dropped.
    """
    epoch, number = divmod(step, num_rows // batch)
    return np.random.default_rng((seed, epoch)).permutation(num_rows)[number * batch :][:batch]


def cropped(
    pixels_BCHW: Tensor,
    crop: tuple[float, float],
    rng: np.random.Generator,
    may_flip_B: np.ndarray,
    side: int,
) -> Tensor:
    """Return random crops in [-1, 1] of `side` pixels, some of them mirrored.

    crop: least and largest share of the area. The aspect ratio is at most 4/3. Half of the images
    that allow it are mirrored.
    """
    B = len(pixels_BCHW)
    pixels_BCHW = pixels_BCHW.float() / 127.5 - 1
    side_B = np.sqrt(rng.uniform(*crop, B))
    aspect_B = np.sqrt(MAX_ASPECT ** rng.uniform(-1, 1, B))
    height_B, width_B = np.minimum(side_B / aspect_B, 1), np.minimum(side_B * aspect_B, 1)
    mirror_B = np.where(may_flip_B & (rng.random(B) < 0.5), -1, 1)
    if crop == (1, 1):
        is_mirrored = torch.from_numpy(mirror_B < 0)[:, None, None, None]
        mirrored_BCHW = torch.where(is_mirrored, pixels_BCHW.flip(3), pixels_BCHW)
        return resized(mirrored_BCHW, side)
    zero_B = np.zeros(B)
    theta_B23 = np.stack(
        [
            np.stack([mirror_B * width_B, zero_B, (1 - width_B) * rng.uniform(-1, 1, B)], 1),
            np.stack([zero_B, height_B, (1 - height_B) * rng.uniform(-1, 1, B)], 1),
        ],
        1,
    )
    grid = F.affine_grid(
        torch.from_numpy(theta_B23).float(), [B, 3, side, side], align_corners=False
    )
    return F.grid_sample(pixels_BCHW, grid, padding_mode="border", align_corners=False)


def random_inked(pixels_BCHW: Tensor, draw_B5: np.ndarray) -> Tensor:
    """Recolour half of the uint8 images in grey or shades of one dark colour.

    Each image uses five random numbers. Equals `random_ink` of eve_vl.data.transforms.
    """
    weights = torch.tensor([19595.0, 38470, 7471]).view(3, 1, 1)  # sums are exact in float32
    grey_B1N = (((pixels_BCHW * weights).sum(1, keepdim=True) + 2**15) / 2**16).long().flatten(2)
    draw_B51, shades = torch.from_numpy(draw_B5)[:, :, None], torch.arange(256, dtype=torch.float64)
    darkest_BC1 = draw_B51[:, 2:] * (0.7 * 255 * (draw_B51[:, 1:2] < 0.5))
    shades_BC256 = (shades + (1 - shades / 255) * darkest_BC1).round().byte()
    inked_BCHW = shades_BC256.gather(2, grey_B1N.expand(-1, 3, -1)).view_as(pixels_BCHW)
    return torch.where(draw_B51[:, :1, :, None] < 0.5, pixels_BCHW, inked_BCHW)


def random_stroked(pixels_BCHW: Tensor, draw_B5: np.ndarray) -> Tensor:
    """Change the strokes of uint8 images by five random numbers each.

    Changes are bolder or thinner strokes, outlines, inverted grey levels and shifts. Equals
    `random_strokes` of eve_vl.data.transforms.
    """
    width_B, outline_B, invert_B, *shifts = torch.from_numpy(draw_B5).T
    pixels_BCHW = pixels_BCHW.clone()
    of = width_B < 0.2
    pixels_BCHW[of] = 255 - lightest(255 - pixels_BCHW[of])
    of = (width_B >= 0.2) & (width_B < 0.4)
    old, thin = pixels_BCHW[of], lightest(pixels_BCHW[of])
    stays = 2 * (thin ^ 255).flatten(1).sum(1) < (old ^ 255).flatten(1).sum(1)
    pixels_BCHW[of] = torch.where(stays[:, None, None, None], old, thin)
    of = outline_B < 0.2
    pixels_BCHW[of] += 255 - lightest(pixels_BCHW[of])
    of = invert_B < 0.15
    pixels_BCHW[of] += (
        255 - pixels_BCHW[of].amax(1, keepdim=True) - pixels_BCHW[of].amin(1, keepdim=True)
    )
    for axis, shift_B in enumerate(shifts, start=2):
        last = pixels_BCHW.shape[axis] - 1
        place_BS = (torch.arange(last + 1) - ((shift_B * 5).floor().long() - 2)[:, None]).clamp(
            0, last
        )
        place = place_BS[:, None, :, None] if axis == 2 else place_BS[:, None, None]
        pixels_BCHW = pixels_BCHW.gather(axis, place.expand_as(pixels_BCHW))
    return pixels_BCHW


def lightest(pixels_BCHW: Tensor) -> Tensor:
    """Return the largest of each 3×3 pixels, as far as they lie within the image."""
    padded = F.pad(pixels_BCHW, (1, 1, 1, 1))
    rows = torch.maximum(torch.maximum(padded[:, :, 2:], padded[:, :, :-2]), padded[:, :, 1:-1])
    return torch.maximum(torch.maximum(rows[..., 2:], rows[..., :-2]), rows[..., 1:-1])


def color_jittered(pixels_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast and saturation of uint8 images by up to 40 %, in random order.

    Equals `color_jitter` of eve_vl.data.augmentations, but for the rounding.
    """
    luma_13 = torch.tensor([[0.2989, 0.587, 0.114]])
    changed = []
    for image_CHW in pixels_BCHW.float():
        pixels_CHW = image_CHW
        factors = rng.uniform(0.6, 1.4, 3)
        for number in rng.permutation(3):
            factor = float(factors[number])
            if number == 0:
                other = torch.zeros(())
            else:
                other = (luma_13 @ pixels_CHW.flatten(1)).view(1, *pixels_CHW.shape[1:])
                if number == 1:
                    other = other.mean()
            pixels_CHW = factor * pixels_CHW + (1 - factor) * other
        changed.append(pixels_CHW)
    return torch.stack(changed).round().clamp(0, 255).byte()


AUGMENTATIONS = {
    "none": lambda pixels_BCHW, _: pixels_BCHW,
    "random_ink": lambda pixels_BCHW, rng: random_inked(
        pixels_BCHW, rng.random((len(pixels_BCHW), 5))
    ),
    "strokes": lambda pixels_BCHW, rng: random_stroked(
        pixels_BCHW, rng.random((len(pixels_BCHW), 5))
    ),
}
AUGMENTATIONS["color"] = color_jittered
AUGMENTATIONS["ink_strokes"] = lambda pixels_BCHW, rng: AUGMENTATIONS["strokes"](
    AUGMENTATIONS["random_ink"](pixels_BCHW, rng), rng
)


def loaded(folder: Path, side: int) -> Tensor:
    """Return the images of a folder at another side, uint8 (N, 3, S, S)."""
    return resized(torch.from_numpy(np.load(folder / "images.npy")), side)


def resized(pixels_NCHW: Tensor, side: int) -> Tensor:
    """Return square images at another side."""
    if side == pixels_NCHW.shape[-1]:
        return pixels_NCHW
    return F.interpolate(pixels_NCHW, (side, side), mode="bilinear", antialias=True)


def build(
    open_clip: object, side: int, patch: int, width: int, blocks: int, context: int
) -> torch.nn.Module:
    """Return open_clip's model."""
    make = open_clip.CLIP  # pyright: ignore[reportAttributeAccessIssue]
    return make(
        embed_dim=width,
        vision_cfg={
            "image_size": side,
            "patch_size": patch,
            "width": width,
            "layers": blocks,
            "head_width": HEAD,
        },
        text_cfg={
            "context_length": context,
            "vocab_size": VOCABULARY,
            "width": width,
            "heads": width // HEAD,
            "layers": blocks,
        },
    )


def optimizer_of(model: torch.nn.Module) -> torch.optim.AdamW:
    """Return AdamW with open_clip_train's betas, epsilon and weight decay for a ViT."""
    named = list(model.named_parameters())
    plain = [
        each
        for name, each in named
        if each.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
    ]
    decayed = [each for _, each in named if not any(each is other for other in plain)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6, fused=True)


def arguments() -> argparse.Namespace:
    """Parse the flags; run.py gives all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        help="folder of images.npy, uint8 (N, 3, S, S), and texts.json to train on",
    )
    add("--read", type=Path, required=True, help="folder of the same form to encode")
    add(
        "--features",
        type=Path,
        required=True,
        help="file of the features to write: images (N, D) and texts (T, D)",
    )
    add("--out", type=Path, required=True)
    add("--budget", type=float, required=True, help="core-seconds")
    add("--batch", type=int, required=True)
    add("--rate", type=float, required=True)
    add("--warmup", type=float, required=True, help="share of the budget")
    add("--patch", type=int, required=True, help="pixels")
    add("--side", type=int, required=True, help="pixels of the input")
    add("--width", type=int, required=True, help="of each tower and of the features")
    add("--blocks", type=int, required=True, help="of each tower")
    add("--crop", type=float, nargs=2, required=True)
    add("--augment", choices=AUGMENTATIONS, required=True)
    add("--seed", type=int, required=True)
    add("--dtype", choices=("float32", "bfloat16"), required=True, help="autocast type")
    return parser.parse_args()


def tokenized(
    folder: Path, tokenizer: Callable[[list[str]], Tensor]
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return the captions' token ids, the first caption of each image, and `may_flip`.

    may_flip: which images may be mirrored.
    """
    texts = json.loads((folder / "texts.json").read_text())
    ids_TT = tokenizer([caption for of_image in texts["captions"] for caption in of_image])
    context = int(ids_TT.argmax(1).max()) + 1  # the last token of a text has the highest id
    return (
        ids_TT[:, :context].clone(),
        np.cumsum([0, *map(len, texts["captions"])]),
        np.array(texts["may_flip"]),
    )


def train(
    args: argparse.Namespace,
    model: torch.nn.Module,
    loss_of: torch.nn.Module,
    pixels_NCHW: Tensor,
    texts: tuple[Any, ...],
    side: int,
) -> dict[str, float]:
    """Train for the budget; return core-seconds, steps, pairs and loss.

    Resumes from the last save if there is one. texts: result of `tokenized`. side: pixels of the
    input.
    """
    ids_TT, starts_N, may_flip_N = texts
    optimizer, state_file, used, step, loss = (
        optimizer_of(model),
        args.out / "state.pt",
        0.0,
        0,
        math.nan,
    )
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        used, step, loss = state["used"], state["step"], state["loss"]

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "used": used,
            "step": step,
            "loss": loss,
        }
        torch.save(state, state_file.with_suffix(".tmp"))
        state_file.with_suffix(".tmp").replace(state_file)

    model.train()
    saved, is_bfloat16 = used, args.dtype == "bfloat16"
    while used < args.budget and (step == 0 or math.isfinite(loss)):
        start = time.process_time()
        rows_B = rows_of(step, len(may_flip_N), args.batch, args.seed)
        rng = np.random.default_rng((args.seed, 1, step))
        ids_BT = ids_TT[
            starts_N[rows_B] + (rng.random(args.batch) * np.diff(starts_N)[rows_B]).astype(int)
        ]
        images_BCHW = AUGMENTATIONS[args.augment](pixels_NCHW[rows_B], rng)
        images_BCHW = cropped(images_BCHW, tuple(args.crop), rng, may_flip_N[rows_B], side)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(used / args.budget, args.rate, args.warmup)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
            out = loss_of(*model(images_BCHW, ids_BT))
        out.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # pyright: ignore[reportCallIssue]
        loss, step = out.item(), step + 1
        used += time.process_time() - start
        if step % 50 == 0:
            print(
                f"step {step}: {used:.0f} of {args.budget:g} core-seconds, loss {loss:.3f}",
                flush=True,
            )
        if used - saved > SAVED_EVERY:
            saved = used
            save()
    save()
    return {"core_seconds": used, "steps": step, "pairs": step * args.batch, "loss": loss}


def main() -> None:
    """Train for the budget, then write the features."""
    args = arguments()
    open_clip = importlib.import_module("open_clip")
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = open_clip.SimpleTokenizer(context_length=LONGEST)
    texts = tokenized(args.data, tokenizer)
    context = texts[0].shape[1]
    side = args.side // args.patch * args.patch  # smaller if the patch does not divide it
    model = build(open_clip, side, args.patch, args.width, args.blocks, context)
    pixels_NCHW = torch.from_numpy(np.load(args.data / "images.npy"))
    result = train(args, model, open_clip.ClipLoss(), pixels_NCHW, texts, side)

    model.eval()
    pixels_NCHW = loaded(args.read, side)
    read = json.loads((args.read / "texts.json").read_text())["texts"]
    with torch.no_grad():
        images = [
            model.encode_image(part.float() / 127.5 - 1, normalize=True)  # pyright: ignore
            for part in pixels_NCHW.split(64)
        ]
        encoded = [
            model.encode_text(part, normalize=True)  # pyright: ignore
            for part in tokenizer(read, context).split(64)
        ]
    images_ND, texts_TD = (
        torch.nan_to_num(torch.cat(parts)).numpy() for parts in (images, encoded)
    )  # may have diverged
    np.savez(args.features, images=images_ND, texts=texts_TD)
    more = {
        "open_clip": open_clip.__version__,
        "parameters": sum(each.numel() for each in model.parameters()),
    }
    (args.out / "result.json").write_text(json.dumps(result | more, indent=1) + "\n")


if __name__ == "__main__":
    main()

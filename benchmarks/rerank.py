"""Compare our re-ranking with the usual loop over each query's top k.

    python benchmarks/rerank.py [RUN] [--recipe demo] [--images 300] [--k 16] [--threads 1]

RUN is a retrieval run such as runs/demo/retrieval. Without RUN the weights are random, and few
pairs are in the top k both ways. Both variants score the same pairs with the same weights in
float32. The loop follows the published code: one query at a time, its image or text repeated k
times, texts padded to full length, all tokens computed in all blocks. Ours scores a pair that is in
both top k once, batches pairs by text length and computes one token in the last block. The variants
take turns; the script prints times, their ratio and the largest difference of a score.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.utils.memory import keep_memory
from eve_vl.utils.threads import yield_cores

yield_cores()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from eve_vl.data.batches import normalize  # noqa: E402
from eve_vl.data.loader import eval_loader  # noqa: E402
from eve_vl.data.opening import open_sources  # noqa: E402
from eve_vl.metrics.topk import top_candidates  # noqa: E402
from eve_vl.recipes import get_finetune_recipe, get_recipe  # noqa: E402
from eve_vl.run.loading import build_task, load_run  # noqa: E402
from eve_vl.run.run_tokenizer import train_tokenizer  # noqa: E402
from eve_vl.tasks.retrieval.config import RetrievalConfig  # noqa: E402
from eve_vl.tasks.retrieval.gallery import Gallery  # noqa: E402
from eve_vl.tasks.retrieval.gathering import gather_gallery  # noqa: E402
from eve_vl.tasks.retrieval.reranking import rerank_scores  # noqa: E402
from eve_vl.tasks.retrieval.task import Retrieval  # noqa: E402
from eve_vl.utils.seeds import seed_everything  # noqa: E402


def loop_over_queries(
    task: Retrieval, gallery: Gallery, texts_IK: Tensor, images_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the scores of each image's texts (I, K) and of each text's images (T, K)."""
    length = task.config.input.text_length
    ids_TL = torch.zeros(len(gallery.ids), length, dtype=torch.int64)
    is_padding_TL = torch.ones(len(gallery.ids), length, dtype=torch.bool)
    for text, ids in enumerate(gallery.ids):
        ids_TL[text, : len(ids)] = ids
        is_padding_TL[text, : len(ids)] = False
    pixels = torch.stack([gallery.pixels[image] for image in range(len(gallery.image_Id))])

    def score(images: Tensor, texts: Tensor) -> Tensor:
        text = task.encoder.text(ids_TL[texts], is_padding_TL[texts])
        return task.contrast.match(
            task.encoder, task.encoder.image(normalize(pixels[images])), text
        )[0][:, 1]

    by_image = [
        score(torch.full((len(texts),), image), texts) for image, texts in enumerate(texts_IK)
    ]
    by_text = [
        score(images, torch.full((len(images),), text)) for text, images in enumerate(images_TK)
    ]
    return torch.stack(by_image), torch.stack(by_text)


@torch.inference_mode()
def main() -> None:
    """Run both in turn and print their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--recipe", default="demo", help="shape of the random model")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(args.threads)
    seed_everything(0)
    config = get_finetune_recipe("scenes_retrieval", get_recipe(args.recipe))
    loaded = load_run(args.run) if args.run else None
    if loaded:
        config = loaded.config
    config = replace(
        config,
        data=replace(config.data, val_samples=args.images, num_workers=0),
        task=RetrievalConfig(captions_per_image=1, dedup_captions=True, rerank=args.k),
    )
    sources = open_sources(["scenes:test"], config.data, config.input.image_size)
    tokenizer = loaded.tokenizer if loaded else train_tokenizer(["scenes:test"], config.data, 512)
    task = (loaded.task if loaded else build_task(config, tokenizer)).eval()
    assert isinstance(task, Retrieval)
    loader = eval_loader(evaluator_of(task).dataset(sources, config, tokenizer), rank=0, world=1)
    gallery = gather_gallery(task, loader)
    texts_IK = top_candidates(gallery.image_Id, gallery.caption_Td, args.k)[0]
    images_TK = top_candidates(gallery.caption_Td, gallery.image_Id, args.k)[0]
    times: dict[str, list[float]] = {"loop": [], "ours": []}
    scores = {}
    for _ in range(args.repeats):
        for name, run in (
            ("loop", lambda: loop_over_queries(task, gallery, texts_IK, images_TK)),
            ("ours", lambda: rerank_scores(task, gallery, texts_IK, images_TK)),
        ):
            start = time.perf_counter()
            scores[name] = run()
            times[name].append(time.perf_counter() - start)
    loop, ours = (statistics.median(found) for found in times.values())
    difference = max((a - b).abs().max().item() for a, b in zip(*scores.values(), strict=True))
    pairs = texts_IK.numel() + images_TK.numel()
    sizes = f"{len(gallery.image_Id)} images, {len(gallery.ids)} texts, k {args.k}"
    print(f"{args.run or args.recipe}: {sizes}: {pairs} scores wanted")
    print(
        f"loop {loop:.2f} s, ours {ours:.2f} s: {ours / loop:.2f} of its time; largest difference "
        f"{difference:.1e}"
    )


if __name__ == "__main__":
    main()

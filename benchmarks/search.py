"""Speed of image search: a query over many images, and indexing compared with its loader alone.

    python benchmarks/search.py                         # random features, synthetic photographs of 500 x 375
    python benchmarks/search.py --folder my/images    # index yours
    python benchmarks/search.py --many 1000000 --csv benchmarks/results/search_many.csv

A query takes a caption and returns paths, on a memory-mapped index: the median and the slowest query are given, and the
first query (which loads the model) separately. Goal: at most 200 ms for 100 000 images. Indexing is compared with the
loader alone, interleaved over the same images with the same workers; the part above 1 is the model (the quickstart's
unless --model names one), so the goal is a ratio near 1 for a fast model. The last number is the time of a search when
no image has changed.

`--many N` measures the inverted file that is used above a million images, on N drawn features, beside comparing all:
the number of images that a query is compared with, recall@10 on queries that did not choose this number, time of a
query, time to build, and time to follow 1 % of changed images. The features are `clustered` (around 2000 centers, each
with as much noise as signal, queries drawn in the same way), `gap` (clustered, and captions are shifted against images
as those of CLIP are: mean cosine near 0 between a caption and its center's images) or `random` (no structure: every
neighbor is about as far as any other, which is the worst case). Goal: recall of at least 0.98, and less than 50 ms.
"""
import argparse
import numpy as np
import os
import statistics
import tempfile
import time
import torch
from contextlib import nullcontext
from data import photograph
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.data.loaders import make_loader
from memory_vlm.search import (
    ImageIndex,
    _check_owner,
    _ImagePaths,
    _Lists,
    _weights_digest,
    _write_index,
    best_rows,
    open_images,
    open_index,
    read_index,
    search,
)
from pathlib import Path
from results import store


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def query_times(model, args, at):
    "Return the seconds of each query over an index of random features, and of the first."
    features = torch.nn.functional.normalize(torch.randn(args.images, args.dim), dim=-1).half()
    names = [f'folder {i // 1000}/image {i:06}.jpg' for i in range(args.images)]
    _write_index(ImageIndex(features, torch.ones(args.images, dtype=torch.bool), names,
                           torch.zeros(args.images, 2, dtype=torch.int64), _weights_digest(model)), at/'drawn')
    del features
    index = read_index(at/'drawn')
    _check_owner(index, model) # else the first query would hash the weights
    first, *times = [seconds(lambda: search(model, index, f'thing number {i}')) for i in range(args.queries + 1)]
    return first, times


def drawn_features(kind, num, dim, rng, num_centers, is_query=False):
    "Return float16 rows of unit length."
    fixed = np.random.default_rng(7)
    centers, shifts = (fixed.standard_normal((n, dim), np.float32)/dim**.5 for n in (num_centers, 2))
    for start in range(0, num, 50_000):
        rows = rng.standard_normal((min(50_000, num - start), dim), np.float32)/dim**.5
        if kind != 'random': rows += centers[rng.integers(len(centers), size=len(rows))]
        if kind == 'gap': rows += shifts[int(is_query)]
        yield (rows/np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def draw_into(path, kind, num, dim, *args):
    "Return drawn features from a file, which may be larger than memory; write it if it is missing."
    done = path.exists() and path.stat().st_size == 2*num*dim
    rows = np.memmap(path, np.float16, 'r+' if done else 'w+', shape=(num, dim))
    if done: return torch.from_numpy(rows)
    start = 0
    for part in drawn_features(kind, num, dim, *args):
        rows[start:start + len(part)] = part
        start += len(part)
    return torch.from_numpy(rows)


def many(args, kind, at):
    "Print recall and times of the inverted file over drawn features, and return a row of figures."
    path = at/f'{kind}.lists'
    features = draw_into(at/f'{kind}.features', kind, args.many, args.dim, np.random.default_rng(0), args.centers)
    def drawn(seed):
        parts = drawn_features(kind, args.queries, args.dim, np.random.default_rng(seed), args.centers, True)
        return torch.from_numpy(np.concatenate(list(parts))).float()
    trials, queries = drawn(1), drawn(2)
    index = ImageIndex(features, torch.ones(args.many, dtype=torch.bool), [], None, '', ids=torch.arange(args.many))
    silent, clock = lambda done, total: None, time.process_time # processor time: other load matters less
    def timed(call):
        start = clock()
        result = call()
        return clock() - start, result
    build, lists = timed(lambda: _Lists(index, path, silent))
    measure, _ = timed(lambda: lists.measure(index, trials))
    def by_lists(query):
        rows = lists.candidates(query, lists.compared)
        return {int(rows[k]) for k, _ in best_rows(features.index_select(0, rows), query, 10)}
    exact = [timed(lambda: {row for row, _ in best_rows(features, q, 10)}) for q in queries]
    for q in queries: by_lists(q) # from the disk
    found = [timed(lambda: by_lists(q)) for q in queries]
    ms = lambda found: 1000*statistics.median(t for t, _ in found)
    index.ids[:args.many//100] += args.many # one percent is encoded again
    follow, _ = timed(lambda: _Lists(index, path, silent))
    recall = float(np.mean([len(a & b)/10 for (_, a), (_, b) in zip(exact, found)]))
    print(f'{kind}: {args.many:,} rows of {args.dim}: {lists.compared:,} compared, recall@10 {recall:.3f}, '
          f'{ms(found):.1f} ms a query ({ms(exact):.1f} ms for all); {build:.0f} s to build, {measure:.0f} s to choose '
          f'the number, {follow:.1f} s to follow 1 %')
    return dict(kind=kind, rows=args.many, lists=len(lists.sizes), compared=lists.compared,
                recall_at_10=round(recall, 3), lists_ms=round(ms(found), 2), exact_ms=round(ms(exact), 1),
                build_seconds=round(build), measure_seconds=round(measure), follow_seconds=round(follow, 1))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--folder', help='images to index (default: synthetic images)')
    p.add_argument('--model', help='model to open with MemoryCLIP.from_pretrained')
    p.add_argument('--images', type=int, default=100_000, help='images in the index of a query')
    p.add_argument('--dim', type=int, default=512, help='embedding dimension')
    p.add_argument('--queries', type=int, default=50)
    p.add_argument('--indexed', type=int, default=512, help='number of synthetic images to index')
    p.add_argument('--workers', type=int, default=os.cpu_count())
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--many', type=int, help='measure the inverted file over this number of rows instead')
    p.add_argument('--kinds', nargs='+', default=['clustered', 'gap', 'random'], help='features with --many')
    p.add_argument('--centers', type=int, default=2000, help='centers of drawn features (count)')
    p.add_argument('--at', help='folder that keeps features and lists (1 KB a row)')
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    torch.manual_seed(0)
    if args.many:
        rows = []
        for kind in args.kinds:
            with nullcontext(args.at) if args.at else tempfile.TemporaryDirectory() as folder:
                rows.append(many(args, kind, Path(folder)))
        if args.csv: store(args.csv, rows, dim=args.dim, centers=args.centers)
        return
    own = lambda *words: MemoryCLIP.from_config(compose(list(words), config_name='quickstart').model).eval()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        first, times = query_times(own(f'model.proj_dim={args.dim}'), args, at)
        middle, slowest = 1000*statistics.median(times), 1000*max(times)
        print(f'{args.images:,} images, dimension {args.dim}: median query {middle:.0f} ms, slowest of {len(times)} '
              f'{slowest:.0f} ms, first {1000*first:.0f} ms')
        place = args.folder or at/'images'
        if not args.folder:
            place.mkdir()
            rng = np.random.default_rng(0)
            for i in range(args.indexed): photograph(rng).save(place/f'{i:04}.jpg', quality=90)
        model = (MemoryCLIP.from_pretrained(args.model) if args.model else own()).to(args.device)
        source, names, _ = open_images(place)
        loader = make_loader(_ImagePaths(source, np.arange(len(source))), image_size=model.cfg.image_size,
                             batch_size=64, train=False, num_workers=args.workers, max_bad_fraction=1)
        def load():
            for _ in loader: pass
        def make(k): return open_index(model, place, at/f'index-{k}', num_workers=args.workers)
        rounds = [(seconds(load), seconds(lambda: make(k))) for k in range(args.rounds + 1)][1:]
        loads, makes = (statistics.median(r) for r in zip(*rounds))
        over = statistics.median(m/l for l, m in rounds)
        again = seconds(lambda: make(1))
        print(f'{len(names)/loads:.0f} images a second come from the loader, {len(names)/makes:.0f} are indexed: '
              f'{over:.2f} x the loader\'s time; '
              f'with nothing new {again:.2f} s')
        if args.csv:
            store(args.csv, [dict(query_ms=round(middle, 1), slowest_ms=round(slowest, 1),
                                  first_ms=round(1000*first, 1), index_over_loader=round(over, 2),
                                  loaded_per_second=round(len(names)/loads), indexed_per_second=round(len(names)/makes),
                                  unchanged_seconds=round(again, 2))],
                           args.device, images=args.images, dim=args.dim, indexed=len(names), workers=args.workers,
                           model=args.model or 'quickstart')


if __name__ == '__main__': main()

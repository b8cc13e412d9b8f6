"""Speed of image search: a query over many images, and indexing compared with its loader alone.

    python benchmarks/search.py                         # random features, synthetic photographs of 500 x 375
    python benchmarks/search.py --folder my/images    # index yours
    python benchmarks/search.py --graph 1000000 --csv benchmarks/results/search_graph.csv

A query takes a caption and returns paths, on a memory-mapped index: the median and the slowest query are given, and the
first query (which loads the model) separately. Goal: at most 200 ms for 100 000 images. Indexing is compared with the
loader alone, interleaved over the same images with the same workers; the part above 1 is the model (the quickstart's
unless --model names one), so the goal is a ratio near 1 for a fast model. The last number is the time of a search when
no image has changed.

`--graph N` measures the graph that is used above a million images, on N drawn features, beside comparing all of them:
recall@10, time of a query, time to build, and time to follow 1 % of changed images. The features are `clustered`
(around 2000 centers, each with as much noise as signal, queries drawn in the same way), `gap` (clustered, and captions
are shifted against images as those of CLIP are: mean cosine near 0 between a caption and its center's images) or
`random` (no structure: every neighbor is about as far as any other, which is the worst case). What is hard is the
number of rows around one center: `--graph 200000 --centers 40` has as many as ten million rows. Goal: at least 0.98,
except `random`. (The tool measures its graph, too, and compares all images if it finds less than 0.95.)
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
    _FROM_GRAPH,
    ImageIndex,
    _check_owner,
    _Graph,
    _ImagePaths,
    _read_graph,
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


def graph(args, kind, at):
    "Print recall and times of the graph over drawn features, and return a row for each number of candidates."
    rng, query_rng, path = *map(np.random.default_rng, (0, 1)), at/f'{kind}.graph'
    features = draw_into(at/f'{kind}.features', kind, args.graph, args.dim, rng, args.centers)
    queries = drawn_features(kind, args.queries, args.dim, query_rng, args.centers, True)
    queries = torch.from_numpy(np.concatenate(list(queries))).float()
    index = ImageIndex(features, torch.ones(args.graph, dtype=torch.bool), [], None, '', ids=torch.arange(args.graph))
    silent, clock = lambda done, total: None, time.process_time # processor time: other load matters less
    def timed(call):
        start = clock()
        result = call()
        return clock() - start, result
    begun = 0 if (old := _read_graph(path, view=True)) is None else len(old) # by a run that was killed
    build, made = timed(lambda: _Graph(index, path, silent))
    def by_graph(query, num):
        rows = made.candidates(query, num)
        return {int(rows[k]) for k, _ in best_rows(features[rows], query, 10)}
    exact = [timed(lambda: {row for row, _ in best_rows(features, q, 10)}) for q in queries]
    ms = lambda found: 1000*statistics.median(t for t, _ in found)
    searched = {}
    for num in args.candidates:
        for q in queries: by_graph(q, num) # from the disk
        searched[num] = [timed(lambda: by_graph(q, num)) for q in queries]
    index.ids[:args.graph//100] += args.graph # one percent is encoded again
    follow, _ = timed(lambda: _Graph(index, path, silent))
    size = path.stat().st_size/args.graph
    print(f'{kind}: {args.graph:,} rows of {args.dim}: {ms(exact):.1f} ms exactly; {build:.0f} s to build'
          f'{f" the last {args.graph - begun:,}" if begun else ""}, '
          f'{follow:.1f} s to follow 1 %, {size:.0f} bytes per row in the file')
    out = []
    for num, found in searched.items():
        recall = float(np.mean([len(a & b)/10 for (_, a), (_, b) in zip(exact, found)]))
        print(f'  {num} candidates: recall@10 {recall:.3f}, {ms(found):.1f} ms a query')
        out.append(dict(kind=kind, rows=args.graph, dtype=made.graph.dtype.name.lower(), candidates=num,
                        recall_at_10=round(recall, 3), graph_ms=round(ms(found), 2),
                        exact_ms=round(ms(exact), 1), build_seconds=round(build), follow_seconds=round(follow, 1),
                        bytes_per_row=round(size), rows_before=begun))
    return out


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
    p.add_argument('--graph', type=int, help='measure the graph over this number of rows instead')
    p.add_argument('--kinds', nargs='+', default=['clustered', 'gap', 'random'], help='features with --graph')
    p.add_argument('--centers', type=int, default=2000, help='centers of drawn features (count)')
    p.add_argument('--candidates', type=int, nargs='+', default=[_FROM_GRAPH], help='images that the graph proposes')
    p.add_argument('--at', help='folder that keeps features and graph (2.2 KB a row); a killed build goes on')
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    torch.manual_seed(0)
    if args.graph:
        rows = []
        for kind in args.kinds:
            with nullcontext(args.at) if args.at else tempfile.TemporaryDirectory() as folder:
                rows += graph(args, kind, Path(folder))
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

"""Loading speed of image files: our loader compared with open_clip's CSV data set, and webdataset with open_clip's
transform.

    python benchmarks/data.py                    # synthetic photographs of 500 x 375
    python benchmarks/data.py --folder my/images # your images
    python benchmarks/data.py --size 4000x3000 --images 24

Measures decoded, augmented (open_clip's training crop) and tokenized pairs of 224 pixels per second of processor time,
without workers, in alternation; the result is the median of the ratios. Goals: 3 times open_clip's CSV data set, 1.5
times webdataset. `decode` is the JPEG decoder alone, on bytes in memory, at the size at which our loader decodes (goal:
at least 85 % of its speed). `resized` also resizes each image to 224 x 224, as torch does it: what is missing to its
speed is reading, random draws, captions and batches. Our loader is also measured with cached images
(`training.data.cache_mb`), after the epoch that fills the cache. Then it loads ten epochs of the same files and
measures the growth of resident memory after the first (goal: under 50 MB).

    python benchmarks/data.py --large            # time to open large data sets

Measures the time to the first batch of a folder of 100 000 images and of a Parquet file of a million rows (goal: 5 s
each), and the bytes of the index per row, without the texts (goal: 100). """
import argparse
import numpy as np
import open_clip
import os
import statistics
import tempfile
import time
import torch
import torch.nn.functional as F
from memory_vlm.data.base import _DECODE_MARGIN, _decode_jpeg, make_cache
from memory_vlm.data.folders import is_image, walk_files
from memory_vlm.data.loaders import make_loader
from memory_vlm.data.shards import make_shards
from memory_vlm.data.sources import open_source
from open_clip.transform import image_transform
from open_clip_train.data import CsvDataset
from pathlib import Path
from PIL import Image
from results import store


def photograph(rng, width=500, height=375):
    "Return an image that compresses like a photograph: large shapes, fine texture and noise."
    def layer(step, method):
        return np.asarray(Image.fromarray(rng.integers(256, size=(height//step, width//step, 3),
                                                       dtype=np.uint8)).resize((width, height), method), float)
    pixels = .75*layer(31, Image.Resampling.BICUBIC) + .25*layer(3, Image.Resampling.BILINEAR) + rng.normal(0,
            4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def files(args, at):
    "Return the paths of the images."
    if args.folder:
        return sorted(os.path.join(w, f) for w, names in walk_files(args.folder) for f in names
                      if is_image(f))[:args.images]
    rng, paths = np.random.default_rng(0), [at/f'{i:04}.jpg' for i in range(args.images)]
    for p in paths: photograph(rng, *args.size).save(p, quality=90)
    return list(map(str, paths))


def rate(batches, num_images):
    "Return pairs per second of processor time."
    start = time.process_time()
    for _ in batches(): pass
    return num_images/(time.process_time() - start)


def resident(): # resident memory (MB)
    with open('/proc/self/statm', encoding='utf-8') as f: pages = int(f.read().split()[1])
    return pages*os.sysconf('SC_PAGE_SIZE')/2**20


def first_batch(path): # Return the source and the time to its first batch (seconds)
    start = time.perf_counter()
    source = open_source(path, 'train')
    make_loader(source, image_size=224, batch_size=16, train=True).one_batch()
    return source, time.perf_counter() - start


def large():
    "Open large data sets, and print the time and the memory of the index."
    import pyarrow as pa
    import pyarrow.parquet as pq
    with tempfile.TemporaryDirectory() as folder:
        at, rows = Path(folder), 1_000_000
        image = photograph(np.random.default_rng(0))
        for part in (at/'files'/f'{d:02}' for d in range(100)): # a file may have fewer than 100 000 hard links
            part.mkdir(parents=True)
            image.save(part/'000.jpg')
            (part/'000.txt').write_text('a caption of some words')
            for i in range(1, 1000):
                for suffix in ('jpg', 'txt'): os.link(part/f'000.{suffix}', part/f'{i:03}.{suffix}')
        source, seconds = first_batch(at/'files')
        print(f'{seconds:.2f} s to the first batch of {len(source):,} files')
        # all different, all existing
        names = [f"{'./'*(i//100_000)}files/{i//1000 % 100:02}/{i % 1000:03}.jpg" for i in range(rows)]
        captions = [f'caption number {i} of some words' for i in range(rows)]
        pq.write_table(pa.table(dict(image=names, caption=captions)), at/'pairs.parquet')
        source, seconds = first_batch(at/'pairs.parquet')
        text = sum(map(len, names)) + sum(map(len, captions))
        print(f'{seconds:.2f} s to the first batch of {len(source):,} rows; the index takes '
              f'{(source.nbytes - text)/rows:.0f} bytes per row without the texts')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--folder', help='folder of images; default: synthetic images')
    p.add_argument('--size', type=lambda s: tuple(map(int, s.split('x'))), default=(500, 375),
                   help='size of synthetic images, such as 4000x3000')
    p.add_argument('--images', type=int, default=256, help='number of images')
    p.add_argument('--rounds', type=int, default=7, help='repetitions')
    p.add_argument('--large', action='store_true', help='open large data sets instead')
    p.add_argument('--csv', help='append the results to this file')
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.large: return large()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        os.environ['MEMORY_VLM_CACHE'] = folder
        paths = files(args, at)
        (at/'pairs.csv').write_text('filepath\ttitle\n'
                                    + ''.join(f'{path}\ta photo of thing number {i}\n' for i, path in enumerate(paths)))
        source, n = open_source(at/'pairs.csv', 'train'), len(paths)
        shards = make_shards(source, at/'shards', 64)
        common = dict(image_size=224, batch_size=32, train=True, drop_last=False)
        ours, sharded = make_loader(source, **common), make_loader(open_source(shards, 'train'), **common)
        cached_source = open_source(at/'pairs.csv', 'train')
        cached_source.set_cache(make_cache(4000))
        cached = make_loader(cached_source, **common)
        transform, tokenizer = image_transform(224, is_train=True), open_clip.get_tokenizer('ViT-B-16')
        csv_loader = torch.utils.data.DataLoader(CsvDataset(str(at/'pairs.csv'), transform, 'filepath', 'title',
                                                            tokenizer=tokenizer), batch_size=32, shuffle=True)
        import webdataset as wds
        streamed = (wds.WebDataset(shards, shardshuffle=False).decode('pilrgb').to_tuple('jpg;png;webp', 'txt')
                    .map_tuple(transform, lambda t: tokenizer(t)[0]).batched(32))
        contents, least = [Path(p).read_bytes() for p in paths], int(ours.dataset.decode_side*_DECODE_MARGIN)
        def decode():
            for data in contents: yield _decode_jpeg(data, least, 1)
        def resized():
            for pixels in decode():
                yield F.interpolate(torch.from_numpy(pixels).permute(2, 0, 1)[None], (224, 224), mode='bicubic',
                                    antialias=True)
        loaders = dict(decode=decode, resized=resized, ours=lambda: ours, cached=lambda: cached,
                       open_clip=lambda: csv_loader, our_shards=lambda: sharded, webdataset=lambda: streamed)
        rounds = [{name: rate(batches, n) for name, batches in loaders.items()} for _ in range(args.rounds + 1)][1:]
        each = {name: statistics.median(r[name] for r in rounds) for name in loaders}
        over_csv = statistics.median(r['ours']/r['open_clip'] for r in rounds)
        over_wds = statistics.median(r['our_shards']/r['webdataset'] for r in rounds)
        of_decoder = statistics.median(r['ours']/r['decode'] for r in rounds)
        of_resized = statistics.median(r['ours']/r['resized'] for r in rounds)
        over_ours = statistics.median(r['cached']/r['ours'] for r in rounds)
        for name, value in each.items(): print(f'{name:12} {value:6.0f} pairs per second and core')
        print(f'{over_csv:.2f} x open_clip, {over_wds:.2f} x webdataset; {over_ours:.2f} x with cached images; '
              f'{of_decoder:.0%} of the speed of the decoder alone, {of_resized:.0%} with torch\'s resize')
        before = None
        for epoch in range(10):
            ours.set_epoch(epoch)
            for _ in ours: pass
            before = before or resident()
        print(f'{resident() - before:.0f} MB growth after ten epochs')
        if args.csv:
            store(args.csv, [dict(images=n, size='folder' if args.folder else '{}x{}'.format(*args.size),
                                  of_decoder=round(of_decoder, 2), of_resized=round(of_resized, 2),
                                  over_open_clip=round(over_csv, 2), over_webdataset=round(over_wds, 2),
                                  cached_over_ours=round(over_ours, 2), mb_grown=round(resident() - before))
                                      | {k: round(v) for k, v in each.items()}])


if __name__ == '__main__': main()

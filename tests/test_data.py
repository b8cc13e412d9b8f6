"""Data of every format, also large and damaged."""
import io
import json
import numpy as np
import os
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import torch
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.data.base import PixelCache
from memory_vlm.data.loaders import make_loader
from memory_vlm.data.scenes import SceneSource
from memory_vlm.data.shards import fetch_shard, make_shards
from memory_vlm.data.sources import open_source, open_sources
from memory_vlm.run import fit
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).parent.parent
SMALL = ['--config-name=quickstart', 'training.batch_size=8', 'training.max_steps=2',
         'training.logging.tensorboard=false', 'training.data.num_workers=0',
         'model.embed_dim=32', 'model.depth=2', 'model.text.embed_dim=16', 'model.text.depth=1']


def pairs(split='train', n=20):
    "Return images and captions."
    scenes = SceneSource(split, 'tiny', cache=False)
    return [(scenes.image(i), scenes.captions(i)[0]) for i in range(n)]


def put(folder, n=20, split='train', suffix='.jpg'):
    "Save images in a folder, and return their names and captions."
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i, (image, caption) in enumerate(pairs(split, n)):
        image.save(folder/f'{i:03}{suffix}')
        out.append((f'{i:03}{suffix}', caption))
    return out


def as_folder(at):
    for name, caption in put(at):
        (at/name).with_suffix('.txt').write_text(f'{caption}\n{caption}, again\nde.utf8=etwas\n')
    return at

def as_csv(at):
    (at.parent/'pairs.csv').write_text('image,caption\n'
                                       + ''.join(f'{at.name}/{n},"{c}, really"\n' for n, c in put(at)))
    return at.parent/'pairs.csv'

def as_tsv(at):
    (at.parent/'pairs.tsv').write_text('filepath\ttitle\n' + ''.join(f'{at}/{n}\t{c}\n' for n, c in put(at)))
    return at.parent/'pairs.tsv'

def as_jsonl(at):
    (at.parent/'pairs.jsonl').write_text(''.join(json.dumps(dict(image=f'{at.name}/{n}', caption=[c, 'too'])) + '\n'
                                                 for n, c in put(at)))
    return at.parent/'pairs.jsonl'

def table_of(at): # Table that holds the images
    rows = put(at)
    return pa.table(dict(image=[dict(bytes=(at/n).read_bytes(), path=n) for n, _ in rows],
                         caption=[c for _, c in rows]))

def as_parquet(at):
    table = table_of(at)
    pq.write_table(table, at.parent/'pairs.parquet', row_group_size=6)
    return at.parent/'pairs.parquet'

def as_metadata(at):
    (at/'metadata.csv').write_text('file_name,text\n' + ''.join(f'{n},{c}\n' for n, c in put(at)))
    return at

def as_classes(at):
    for name in ('cat', 'dog'): put(at/name, 10)
    return at

def as_coco(at):
    rows = put(at.parent/'train2017')
    images = [dict(id=i, file_name=n) for i, (n, _) in enumerate(rows)]
    (at.parent/'annotations').mkdir(exist_ok=True)
    annotations = [dict(image_id=i, caption=c) for i, (_, c) in enumerate(rows)]
    (at.parent/'annotations'/'captions.json').write_text(json.dumps(dict(images=images, annotations=annotations)))
    return at.parent/'annotations'/'captions.json'

def as_flickr(at):
    (at.parent/'results.token').write_text(''.join(f'{n}#{k}\t{c}\n' for n, c in put(at.parent/'images')
                                                   for k in range(5)))
    return at.parent/'results.token'

def as_saved(at):
    table = table_of(at)
    with pa.OSFile(str(at/'data.arrow'), 'wb') as f, pa.ipc.new_stream(f, table.schema) as out: out.write_table(table)
    (at/'state.json').write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return at


def as_shards(at): return make_shards(open_source(as_folder(at), 'train'), at.parent/'shards', per_shard=9)


def as_karpathy(at):
    images = [dict(filename=n, split='train', sentences=[dict(raw=c), dict(raw=f'{c}, again')]) for n,
              c in put(at.parent/'images')]
    (at.parent/'dataset_flickr8k.json').write_text(json.dumps(dict(images=images)))
    return at.parent/'dataset_flickr8k.json'

def inside(name): # Return a function that makes a folder with a table
    def make(at):
        rows = put(at)
        if name.endswith('.json'): (at/name).write_text(json.dumps({n: [c, 'too'] for n, c in rows}))
        elif name.endswith('.jsonl'):
            (at/name).write_text(''.join(json.dumps(dict(file_name=n, text=c)) + '\n' for n, c in rows))
        elif name.endswith('.parquet'):
            pq.write_table(pa.table(dict(file_name=[n for n, _ in rows], text=[c for _, c in rows])), at/name)
        else:
            comma = '\t' if name.endswith('.tsv') else ','
            (at/name).write_text(f'file_name{comma}text\n' + ''.join(f'{n}{comma}{c}\n' for n, c in rows))
        return at
    make.__name__ = f'inside {name}'
    return make

def serve(handler): # On this machine only, until the tests end
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{server.server_port}'

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

def as_remote_shards(at):
    text = Path(as_shards(at))
    return f'{serve(partial(Quiet, directory=text.parent))}/{text.name}'


KINDS = [as_shards, as_remote_shards, as_folder, as_csv, as_tsv, as_jsonl, as_parquet, as_metadata, as_classes,
         as_coco, as_flickr, as_karpathy, as_saved,
         *map(inside, ('captions.csv', 'captions.tsv', 'captions.jsonl', 'captions.json', 'captions.parquet',
                       'metadata.jsonl'))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('MEMORY_VLM_CACHE', str(tmp_path/'cache'))


@pytest.mark.parametrize('make', KINDS)
def test_each_kind_gives_the_same_images_with_and_without_workers(make, tmp_path):
    source = open_source(make(tmp_path/'images'), 'train')
    assert len(source) == 20
    assert np.abs(source.pixels(0).astype(int) - np.asarray(pairs()[0][0])).mean() < 8 # JPEG
    assert pairs()[3][1] in source.captions(3)[0] or make is as_classes
    here, there = (list(make_loader(source, image_size=32, batch_size=4, train=True, num_workers=w)) for w in (0, 2))
    assert all((a == b).all() for one, other in zip(here, there, strict=True) for a, b in zip(one, other))


def words_for(make, at):
    "Return the configuration of a small fit on data of a format."
    return [*SMALL, f'training.run_dir={at}/run',
            *(f"training.data.{s}_path='{make(at/s/'x')}'" for s in ('train', 'val'))]


@pytest.mark.slow
@pytest.mark.parametrize('make', KINDS)
def test_a_fit_runs_on_each_kind(make, tmp_path):
    run = fit(compose(words_for(make, tmp_path)[1:], config_name='quickstart'))
    assert len(run.learn.dls.train.source) == 20 and 0 <= run.metrics['i2t/R@1'] <= 1 and (run.folder/'DONE').exists()


def test_a_fit_runs_from_the_command_line(tmp_path):
    done = subprocess.run([sys.executable, 'train.py', *words_for(as_csv, tmp_path)], cwd=ROOT, capture_output=True,
                          encoding='utf-8')
    assert done.returncode == 0, done.stderr
    assert '20 images for training' in done.stdout


# (data, argument)
TABLE_ROWS = re.findall(r'^\| ([^|]+) \| `("?training\.data\.train_path=[^|]+)` \|$',
                        '\n'.join(''.join(c['source'])
                                  for c in json.loads((ROOT/'nbs/explain/data.ipynb').read_text())['cells']), re.M)


def write_data_of(line):
    "Write the data of a line of the table in explain/data into the working folder."
    as_folder(Path('my/images'))
    as_classes(Path('my/classes'))
    as_csv(Path('my/csv'))
    if 'image_key=photo' in line:
        Path('my/pairs.csv').write_text(Path('my/pairs.csv').read_text(encoding='utf-8').replace('image,caption',
                'photo,words'), encoding='utf-8')
    as_jsonl(Path('my/jsonl'))
    as_parquet(Path('my/parquet'))
    as_metadata(Path('my/folder'))
    Path('my/saved').mkdir()
    as_saved(Path('my/saved'))
    as_coco(Path('coco/x'))
    os.rename('coco/annotations/captions.json', 'coco/annotations/captions_train2017.json')
    as_flickr(Path('flickr/x'))
    if '.tar' in line:
        make_shards(open_source('my/images*15', 'train'), 'more', per_shard=1), [os.rename(p, f'my/{p.name}')
                for p in Path('more').glob('*.tar')]


def test_the_guide_has_a_line_for_each_kind():
    assert len(TABLE_ROWS) == 13 and len(dict(TABLE_ROWS)) == 13


@pytest.mark.parametrize('line', [line for _, line in TABLE_ROWS], ids=[what for what, _ in TABLE_ROWS])
def test_each_line_of_the_guide_opens(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data_of(line)
    d = compose([*shlex.split('training.data.val_path='), *shlex.split(line)]).training.data
    train, valid = open_sources(d.train_path, d.val_path, image_size=32, image_key=d.image_key,
                                caption_key=d.caption_key, image_dir=d.image_dir, templates=d.templates)
    assert len(train) >= 18 and len(valid) >= 1 and train.captions(0) and valid.pixels(0).shape[2] == 3


@pytest.mark.slow
@pytest.mark.parametrize('line', [line for _, line in TABLE_ROWS], ids=[what for what, _ in TABLE_ROWS])
def test_each_line_of_the_guide_trains_as_it_is_typed(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data_of(line)
    words = shlex.join([sys.executable, str(ROOT/'train.py'), *SMALL, 'training.run_dir=run',
                        'training.data.val_path='])
    done = subprocess.run(f'{words} {line}', shell=True, capture_output=True, encoding='utf-8')
    assert done.returncode == 0, done.stderr
    assert Path('run/DONE').exists() and len(Path('run/metrics.csv').read_text(encoding='utf-8').splitlines()) > 1


def first_batch(source): return make_loader(source, image_size=32, batch_size=16, train=True).one_batch()


@pytest.mark.slow
def test_a_hundred_thousand_files_open_in_seconds(tmp_path):
    for folder in (tmp_path/f'{d:02}' for d in range(100)):
        folder.mkdir()
        Image.new('RGB', (8, 8)).save(folder/'000.jpg')
        (folder/'000.txt').write_text('words')
        for i in range(1, 1000):
            for suffix in ('jpg', 'txt'): os.link(folder/f'000.{suffix}', folder/f'{i:03}.{suffix}')
    start = time.perf_counter()
    source = open_source(tmp_path, 'train')
    first_batch(source)
    assert time.perf_counter() - start < 5 and len(source) == 100_000
    assert source.images.files.nbytes < 100_000*(10 + 100)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_a_million_rows_open_in_seconds(tmp_path, suffix):
    import pyarrow.csv as pcsv
    Image.new('RGB', (8, 8)).save(tmp_path/'x.jpg')
    names, captions = [f'{i:07}.jpg' for i in range(1_000_000)], [f'an image of {i} things, and more words'
                                                                  for i in range(1_000_000)]
    for i in (0, 1, 2, 999_999): os.link(tmp_path/'x.jpg', tmp_path/names[i])
    table, path = pa.table(dict(image=names, caption=captions)), tmp_path/f'pairs.{suffix}'
    if suffix == 'csv': pcsv.write_csv(table, path)
    elif suffix == 'parquet': pq.write_table(table, path)
    else: path.write_text(''.join(json.dumps(dict(image=n, caption=c)) + '\n' for n, c in zip(names, captions)))
    start = time.perf_counter()
    source = open_source(path, 'train')
    source.pixels(2), source.captions(999_999)
    assert time.perf_counter() - start < 5 and len(source) == 1_000_000
    assert source.nbytes - sum(map(len, names)) - sum(map(len, captions)) < 100*1_000_000


def jpeg(image, **kwargs):
    image.save(out := io.BytesIO(), 'JPEG', **kwargs)
    return out.getvalue()


GRAY = Image.new('RGB', (60, 40), (120, 120, 120))
TURNED = GRAY.getexif()
TURNED[0x112] = 6

USABLE = {
    'cmyk.jpg': lambda p: GRAY.convert('CMYK').save(p),
    '16 bits.png': lambda p: Image.fromarray(np.full((40, 60), 120*257, np.uint16)).save(p),
    'palette.png': lambda p: Image.new('P', (60, 40), 3).save(p, transparency=3),
    'moving.gif': lambda p: GRAY.save(p, save_all=True, append_images=[Image.new('RGB', (60, 40))]),
    'turned.jpg': lambda p: GRAY.save(p, exif=TURNED),
    'one pixel.png': lambda p: Image.new('RGB', (1, 1)).save(p),
    'wide.png': lambda p: Image.new('RGB', (4000, 1)).save(p),
    'high.png': lambda p: Image.new('RGB', (1, 4000)).save(p),
    'really a PNG.jpg': lambda p: GRAY.save(p, format='PNG'),
    'émoji 🐶.jpg': lambda p: GRAY.save(p),
}
UNUSABLE = {
    'cut.jpg': (lambda p: p.write_bytes(jpeg(pairs()[0][0])[:900]), 'cut short'),
    'empty.jpg': (lambda p: p.write_bytes(b''), 'empty file'),
    'words.jpg': (lambda p: p.write_bytes(b'words'), 'not an image'),
    'folder.jpg': (lambda p: p.mkdir(), 'is a directory'),
    'loop.jpg': (lambda p: p.symlink_to(p), 'too many levels of symbolic links'),
    'missing.jpg': (lambda p: None, 'missing file'),
    'nul\x00.jpg': (lambda p: None, 'missing file'),
    'bomb.bmp': (lambda p: p.write_bytes(BOMB), 'too many pixels'),
}
# declares 2.7 GB
BOMB = b'BM' + bytes(12) + b''.join(n.to_bytes(4, 'little') for n in (40, 30_000, 30_000, 1 + (24 << 16))) + bytes(24)


@pytest.mark.parametrize('name', USABLE)
def test_readable_images_are_used(name, tmp_path):
    USABLE[name](tmp_path/name)
    (tmp_path/'pairs.csv').write_text(f'image,caption\n{name},words\n')
    for train in (True, False):
        images, ids, _ = make_loader(open_source(tmp_path/'pairs.csv', 'train'), image_size=32, batch_size=1,
                                     train=train).one_batch()
        assert images.shape == (1, 3, 32, 32) and len(ids) == 1


@pytest.mark.parametrize('name', UNUSABLE, ids=ascii)
@pytest.mark.parametrize('num_workers', [0, 2])
def test_unreadable_images_are_named_counted_and_replaced(name, num_workers, tmp_path):
    write, reason = UNUSABLE[name]
    rows = put(tmp_path, 15) + [(name, 'words')]
    write(tmp_path/name)
    (tmp_path/'pairs.csv').write_text('image,caption\n' + ''.join(f'{n},{c}\n' for n, c in rows))
    loader = make_loader(open_source(tmp_path/'pairs.csv', 'train'), image_size=32, batch_size=4, train=True,
                         num_workers=num_workers, max_bad_fraction=.2)
    with pytest.warns(UserWarning, match=f'Left out: .*{name}'): batches = list(loader)
    assert [len(b[0]) for b in batches] == [4]*4 and all((b[2] < 15).all() for b in batches)
    assert dict(loader.bad.reasons) == {reason: 1}
    loader.set_epoch(1)
    # once, however often it is met
    assert len(list(loader)) == 4 and dict(loader.bad.reasons) == {reason: 2} and len(loader.bad.named) == 1
    with pytest.raises(UserError, match='more than training.data.max_bad_fraction=0.01 allows'):
        list(loader.new(max_bad_fraction=.01))


CAPTIONS = {'': None, '  ': None, '\x00': None, '\u200f\u200f': None, 'a'*10_000: 1, 'a dog '*2_000: 77,
            'ring \x07 the bell': 5, 'nul \x00 byte': None, 'كلب يركض': None, '🐶🐶': None, '‮reversed': None}


@pytest.mark.parametrize('caption', CAPTIONS, ids=range(len(CAPTIONS)))
def test_empty_captions_are_skipped(caption, tmp_path):
    GRAY.save(tmp_path/'x.jpg')
    (tmp_path/'x.jsonl').write_text(json.dumps(dict(image='x.jpg', caption=caption)) + '\n')
    source = open_source(tmp_path/'x.jsonl', 'train')
    if any(c.isprintable() and not c.isspace() for c in caption):
        ids = make_loader(source, image_size=32, batch_size=1, train=True).one_batch()[1]
        assert 3 <= ids.shape[1] <= 77 and ids[0, -1] == 49407
    else:
        with pytest.raises(UserError, match='x.jpg contains no caption'):
            make_loader(source, image_size=32, batch_size=1, train=True).one_batch()


def broken_fit(tmp_path, *words):
    "Return the configuration of a fit on 40 images, of which three are broken."
    at = tmp_path/'train'
    if not at.exists():
        for name, caption in put(at, 40): (at/name).with_suffix('.txt').write_text(caption)
        (at/'007.jpg').write_bytes(b'')
        (at/'011.txt').write_bytes('café'.encode('latin-1'))
        (at/'030.jpg').write_bytes((at/'030.jpg').read_bytes()[:700])
    return compose([*SMALL[1:], 'training.max_steps=12', 'training.logging.save_interval=4',
                    f'training.data.train_path={at}', 'training.epochs=3',
                    'training.data.val_path=scenes:tiny', 'training.preflight=false', *words], config_name='quickstart')


def test_bad_samples_do_not_end_a_fit_and_are_reported(tmp_path):
    with pytest.warns(UserWarning, match='Left out'):
        run = fit(broken_fit(tmp_path, 'training.data.max_bad_fraction=0.2', f'training.run_dir={tmp_path}/run'))
    assert len(run.learn.recorder.losses) == 12
    report = (tmp_path/'run'/'bad_samples.txt').read_text()
    for words in ('empty file', 'not UTF-8', 'cut short', '007.jpg', '011.txt', '030.jpg'): assert words in report
    assert 'bad_samples' in (tmp_path/'run'/'metrics.csv').read_text()


def test_too_many_bad_samples_end_a_fit_with_a_table(tmp_path):
    with pytest.raises(UserError,
                       match=r'samples could not be used\n +1  ') as e, warnings.catch_warnings(action='ignore'):
        fit(broken_fit(tmp_path, f'training.run_dir={tmp_path}/run'))
    assert 'max_bad_fraction=0.01' in str(e.value)


@pytest.mark.slow
def test_with_bad_samples_a_resumed_fit_is_bit_identical(tmp_path):
    words = ['training.data.max_bad_fraction=0.2', 'training.checkpoint.save_top_k=5', 'model.drop_rate=0.1']
    with warnings.catch_warnings(action='ignore'):
        straight = fit(broken_fit(tmp_path, *words, f'training.run_dir={tmp_path}/a'))
        fit(broken_fit(tmp_path, *words, f'training.run_dir={tmp_path}/b'))
        for p in sorted((tmp_path/'b'/'checkpoints').iterdir()):
            if json.loads((p/'manifest.json').read_text())['step'] > 8: shutil.rmtree(p)
        (tmp_path/'b'/'DONE').unlink()
        again = fit(broken_fit(tmp_path, *words, f'training.run_dir={tmp_path}/b', 'training.resume=auto',
                               'training.data.num_workers=2'))
    assert straight.learn.recorder.losses == again.learn.recorder.losses
    assert straight.learn.dls.train.bad.reasons == again.learn.dls.train.bad.reasons
    assert all((a == b).all() for a, b in zip(straight.learn.model.parameters(), again.learn.model.parameters()))


def test_shards_give_every_image_once_with_more_workers_than_shards_and_from_any_point(tmp_path, monkeypatch):
    monkeypatch.setenv('MEMORY_VLM_CACHE', str(tmp_path/'cache'))
    text = make_shards(open_source(as_folder(tmp_path/'x'), 'train'), tmp_path/'shards', per_shard=10)
    loader = make_loader(open_source(text, 'train'), image_size=32, batch_size=4, train=True, num_workers=3)
    whole = list(loader)
    assert sorted(torch.cat([b[2] for b in whole]).tolist()) == list(range(20))
    loader.set_epoch(0, 3)
    rest = list(loader)
    assert len(rest) == 2 and all((a == b).all() for one, other in zip(whole[3:], rest) for a, b in zip(one, other))


def epochs_of(loader, n=3):
    "Return all batches of some epochs."
    def one(epoch):
        loader.set_epoch(epoch)
        return list(loader)
    return [b for e in range(n) for b in one(e)]


def same(batches, others):
    return all((a == b).all() for one, other in zip(batches, others, strict=True) for a, b in zip(one, other))


@pytest.mark.parametrize('make', [as_shards, as_folder, as_parquet, as_saved])
def test_cache_leaves_batches_unchanged(make, tmp_path):
    source = open_source(make(tmp_path/'images'), 'train')
    plain = make_loader(source, image_size=32, batch_size=4, train=True, augmentation='strong')
    without = epochs_of(plain)
    source.set_cache(cache := PixelCache(10**8))
    assert same(without, epochs_of(plain)) and os.fstat(cache.file.fileno()).st_size > 20*100*100
    assert same(without, epochs_of(plain.new(num_workers=2)))


@pytest.mark.parametrize('start', ['fork', pytest.param('spawn', marks=pytest.mark.slow),
                                   pytest.param('forkserver', marks=pytest.mark.slow)])
def test_workers_share_a_cache_and_its_limit_however_they_start(start, tmp_path):
    as_folder(tmp_path/'x')
    source = open_source(tmp_path/'x', 'train')
    loader = make_loader(source, image_size=32, batch_size=4, train=True)
    without = epochs_of(loader)
    room = 8 + 20*48 + sum(48 + source.pixels_for(i, 32).nbytes for i in range(20))
    source.set_cache(cache := PixelCache(room))
    loader = loader.new(num_workers=2, persistent_workers=True) # they see what others decode after they have started
    loader.multiprocessing_context = start
    assert same(without, epochs_of(loader))
    assert os.fstat(cache.file.fileno()).st_size == room # each image once, whichever worker decoded it
    for p in (tmp_path/'x').glob('*.jpg'): p.unlink()
    assert same(without, epochs_of(loader))


def test_a_full_disk_does_not_end_an_epoch(tmp_path):
    as_folder(tmp_path/'x')
    program = f"""if True:
        import os, resource, sys
        from memory_vlm.data.base import PixelCache
        from memory_vlm.data.loaders import make_loader
        from memory_vlm.data.sources import open_source
        source = open_source({str(tmp_path/'x')!r}, 'train')
        source.set_cache(cache := PixelCache(10**8))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)) # of any file: about two of these images
        loader = make_loader(source, image_size=32, batch_size=4, train=True, num_workers=2, persistent_workers=True)
        for epoch in range(3):
            loader.set_epoch(epoch)
            print(sum(len(b[0]) for b in loader), os.fstat(cache.file.fileno()).st_size <= 100_000)
    """
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, encoding='utf-8')
    assert done.returncode == 0, done.stderr
    assert done.stdout == '20 True\n'*3 and 'Caching of decoded images stopped: ' in done.stderr


def test_a_fit_with_a_cache_is_the_same_fit_and_both_loaders_share_it(tmp_path):
    losses = []
    for mb in (0, 1, 1000):
        words = [*words_for(as_csv, tmp_path/str(mb))[1:], f'training.data.cache_mb={mb}', 'training.max_steps=4']
        learn = fit(compose(words, config_name='quickstart')).learn
        train, valid = (dl.source._cache for dl in learn.dls)
        assert (mb == 0 and train is valid is None or train[0] is valid[0]
                and 40*20*2 < os.fstat(train[0].file.fileno()).st_size <= train[0].limit <= mb*2**20)
        losses.append(learn.recorder.losses)
    assert losses[0] == losses[1] == losses[2]


def test_remote_shard_is_retried_with_backoff(tmp_path):
    shard, requests = Path(as_shards(tmp_path/'x').replace('{00000..00002}', '00000')), []
    class Failing(Quiet):
        def do_GET(self):
            requests.append(time.monotonic())
            if len(requests) == 1: return self.send_error(404)
            data = shard.read_bytes()
            self.send_response(200)
            self.send_header('Content-Length', len(data))
            self.end_headers()
            self.wfile.write(data[:len(data)//2] if len(requests) == 2 else data)
    url = f'{serve(Failing)}/x.tar'
    assert Path(fetch_shard(url, wait=.3)).read_bytes() == shard.read_bytes()
    assert len(requests) == 3 and requests[1] - requests[0] > .3 and requests[2] - requests[1] > .6
    fetch_shard(url) # from the cache
    assert len(requests) == 3


MIXED = ['pairs.csv*2 + {}', "[pairs.csv*2,'{}']"]


@pytest.mark.parametrize('words', MIXED)
def test_a_fit_runs_on_a_mixture_with_a_part_held_out(words, tmp_path, monkeypatch):
    monkeypatch.setenv('MEMORY_VLM_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    shards = make_shards(SceneSource('valid', 'tiny', image_size=32, cache=False), 'shards', per_shard=10)
    as_csv(tmp_path/'x')
    cfg = compose([*SMALL[1:], 'training.run_dir=run', f'training.data.train_path="{words.format(shards)}"'
                   if words[0] != '[' else
                   f'training.data.train_path={words.format(shards)}', 'training.data.val_path=',
                   'training.data.val_fraction=0.2'], config_name='quickstart')
    run = fit(cfg)
    train, valid = run.learn.dls.train.source, run.learn.dls.valid.source
    assert len(valid) == 8 and len(train) == 2*20 + 22 - 8 - sum(valid.label(i).endswith('.jpg') for i in range(8))


@pytest.mark.slow
@pytest.mark.parametrize('num_workers', [0, 2])
def test_ten_epochs_do_not_grow_memory(num_workers, tmp_path):
    loader = make_loader(open_source(as_folder(tmp_path/'x'), 'train'), image_size=224, batch_size=4, train=True,
                         num_workers=num_workers, persistent_workers=num_workers > 0)
    def resident():
        return sum(p.memory_info().rss for p in [psutil.Process(), *psutil.Process().children(recursive=True)])/2**20
    sizes = []
    for epoch in range(11):
        loader.set_epoch(epoch)
        for batch in loader: pass
        sizes.append(resident())
    assert sizes[-1] - sizes[0] < 50, sizes

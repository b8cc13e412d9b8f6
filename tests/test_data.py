"""Data of every kind, at the sizes and in the states that people have it in."""
import json, os, subprocess, sys, time
from pathlib import Path
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from memory_vlm.config import compose
from memory_vlm.data.loaders import make_loader
from memory_vlm.data.scenes import SceneSource
from memory_vlm.data.sources import open_source
from memory_vlm.run import fit

ROOT = Path(__file__).parent.parent
SMALL = ['--config-name=quickstart', 'training.batch_size=8', 'training.max_steps=2', 'training.logging.tensorboard=false', 'training.data.num_workers=0',
         'model.embed_dim=32', 'model.depth=2', 'model.text.embed_dim=16', 'model.text.depth=1']


def pairs(split='train', n=20):
    "Pictures and captions."
    scenes = SceneSource(split, 'tiny', cache=False)
    return [(scenes.image(i), scenes.captions(i)[0]) for i in range(n)]


def put(folder, n=20, split='train', suffix='.jpg'):
    "Pictures in a folder, and their names and captions."
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i, (picture, caption) in enumerate(pairs(split, n)):
        picture.save(folder/f'{i:03}{suffix}')
        out.append((f'{i:03}{suffix}', caption))
    return out


def as_folder(at):
    for name, caption in put(at): (at/name).with_suffix('.txt').write_text(f'{caption}\n{caption}, again\nde.utf8=etwas\n')
    return at

def as_csv(at):
    (at.parent/'pairs.csv').write_text('image,caption\n' + ''.join(f'{at.name}/{n},"{c}, really"\n' for n, c in put(at)))
    return at.parent/'pairs.csv'

def as_tsv(at):
    (at.parent/'pairs.tsv').write_text('filepath\ttitle\n' + ''.join(f'{at}/{n}\t{c}\n' for n, c in put(at)))
    return at.parent/'pairs.tsv'

def as_jsonl(at):
    (at.parent/'pairs.jsonl').write_text(''.join(json.dumps(dict(image=f'{at.name}/{n}', caption=[c, 'too'])) + '\n' for n, c in put(at)))
    return at.parent/'pairs.jsonl'

def table_of(at): # Pictures inside
    rows = put(at)
    return pa.table(dict(image=[dict(bytes=(at/n).read_bytes(), path=n) for n, _ in rows], caption=[c for _, c in rows]))

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
    (at.parent/'results.token').write_text(''.join(f'{n}#{k}\t{c}\n' for n, c in put(at.parent/'images') for k in range(5)))
    return at.parent/'results.token'

def as_saved(at):
    table = table_of(at)
    with pa.OSFile(str(at/'data.arrow'), 'wb') as f, pa.ipc.new_stream(f, table.schema) as out: out.write_table(table)
    (at/'state.json').write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return at


KINDS = [as_folder, as_csv, as_tsv, as_jsonl, as_parquet, as_metadata, as_classes, as_coco, as_flickr, as_saved]


@pytest.mark.parametrize('make', KINDS)
def test_each_kind_gives_the_same_pictures_with_and_without_workers(make, tmp_path):
    source = open_source(make(tmp_path/'pictures'), 'train')
    assert len(source) == 20
    assert np.abs(source.pixels(0).astype(int) - np.asarray(pairs()[0][0])).mean() < 8 # JPEG
    assert pairs()[3][1] in source.captions(3)[0] or make is as_classes
    here, there = (list(make_loader(source, image_size=32, batch_size=4, train=True, num_workers=w)) for w in (0, 2))
    assert all((a == b).all() for one, other in zip(here, there, strict=True) for a, b in zip(one, other))


def words_for(make, at):
    "The configuration of a small fit on data of a kind."
    return [*SMALL, f'training.run_dir={at}/run', *(f'training.data.{s}_path={make(at/s/"x")}' for s in ('train', 'val'))]


@pytest.mark.slow
@pytest.mark.parametrize('make', KINDS)
def test_a_fit_runs_on_each_kind(make, tmp_path):
    run = fit(compose(words_for(make, tmp_path)[1:], config_name='quickstart'))
    assert len(run.learn.dls.train.source) == 20 and 0 <= run.metrics['i2t/R@1'] <= 1 and (run.folder/'DONE').exists()


def test_a_fit_runs_from_the_command_line(tmp_path):
    done = subprocess.run([sys.executable, 'train.py', *words_for(as_csv, tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '20 pictures for training' in done.stdout


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
    assert source.pictures.files.nbytes < 100_000*(10 + 100)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_a_million_rows_open_in_seconds(tmp_path, suffix):
    import pyarrow.csv as pcsv
    Image.new('RGB', (8, 8)).save(tmp_path/'x.jpg')
    names, captions = [f'{i:07}.jpg' for i in range(1_000_000)], [f'a picture of {i} things, and more words' for i in range(1_000_000)]
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

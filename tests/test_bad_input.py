"""Odd and damaged input is read right, or refused in one line that names the place and the cure."""
import datetime
import io
import json
import numpy as np
import os
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import re
import tarfile
import warnings
import zlib
from memory_vlm.cli import main
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.data.base import BadSample, FileSource, PathList
from memory_vlm.data.check import check
from memory_vlm.data.folders import FolderSource
from memory_vlm.data.shards import ShardSource, make_shards
from memory_vlm.data.sources import open_source
from memory_vlm.data.tables import open_table
from pathlib import Path
from PIL import Image

CSV, TSV = 'image,caption\n', 'image\tcaption\n'
# name: (file, text, captions of all images, or a part of the message)
TABLES = {
    'an unclosed quote takes all rows': ('a.csv', f'{CSV}0.jpg,"open\n1.jpg,two\n2.jpg,three\n', 'row 1'),
    'an unclosed quote ends at the next quote': ('a.csv', f'{CSV}0.jpg,one\n1.jpg,"open\n2.jpg,"three"\n', 'row 2'),
    'an unclosed quote in a TSV': ('a.tsv', f'{TSV}0.jpg\t"12 inch\n1.jpg\ttwo\n', 'not closed'),
    'a quote inside a cell': ('a.tsv', f'{TSV}0.jpg\t12" pizza\n1.jpg\ta "b" c\n', [['12" pizza'], ['a "b" c']]),
    'a quote that is doubled': ('a.csv', f'{CSV}0.jpg,"a ""b"" c"\n', [['a "b" c']]),
    'an unclosed quote with the image last and CRLF': (
        'a.csv', 'caption,image\r\n"open,0.jpg\r\ntwo,1.jpg\r\nx",2.jpg\r\n', 'row 1'),
    'a caption of several lines': ('a.csv', f'{CSV}0.jpg,"a, b\nc, d"\n1.jpg,two\n', [['a, b\nc, d'], ['two']]),
    'CR line ends': ('a.csv', 'image,caption\r0.jpg,one\r1.jpg,two\r', [['one'], ['two']]),
    'CRLF line ends': ('a.csv', 'image,caption\r\n0.jpg,one\r\n1.jpg,two\r\n', [['one'], ['two']]),
    'two columns of one name': ('a.csv', 'image,caption,caption\n0.jpg,one,x\n', "2 columns called 'caption'"),
    'a byte order mark': ('a.csv', f'\ufeff{CSV}0.jpg,one\n', [['one']]),
    'only a header': ('a.csv', CSV, 'no line after the column names'),
    'an empty file': ('a.jsonl', '', 'is empty'),
    'lists written by pandas': ('a.csv', CSV
                                + '''0.jpg,"['a cat', 'a dog']"\n1.jpg,"['x']"\n''', [['a cat', 'a dog'], ['x']]),
    'lists written by pandas, one missing': ('a.csv', CSV + '0.jpg,"[\'a\', \'b\']"\n1.jpg,\n2.jpg,"[\'c\']"\n',
                                             [['a', 'b'], None, ['c']]),
    'lists written as JSON': ('a.tsv', TSV + '0.jpg\t["a, b", "c"]\n', [['a, b', 'c']]),
    'a caption that only starts like a list': ('a.tsv',
                                               f'{TSV}0.jpg\t[sic] a cat\n1.jpg\ttwo\n', [['[sic] a cat'], ['two']]),
    'words for missing values, numbers and dates': ('a.csv',
                                                    f'{CSV}0.jpg,NA\n1.jpg,null\n2.jpg,007\n3.jpg,2020-01-01\n',
                                                    [['NA'], ['null'], ['007'], ['2020-01-01']]),
    'JSON captions that look like dates': ('a.jsonl', '{"image":"0.jpg","caption":"2020-01-01"}\n'
                                           '{"image":"1.jpg","caption":"2020-01-02 10:00:00"}\n',
                                           [['2020-01-01'], ['2020-01-02 10:00:00']]),
    'JSON captions that are lists and texts': ('a.jsonl', '{"image":"0.jpg","caption":["a","b"]}\n'
                                               '{"image":"1.jpg","caption":"c"}\n', [['a', 'b'], ['c']]),
    'JSON captions that are numbers': ('a.jsonl', '{"image":"0.jpg","caption":12}\n{"image":"1.jpg","caption":true}\n',
                                       [['12'], ['true']]),
    'JSON images with a path': ('a.jsonl', '{"image":{"path":"0.jpg"},"caption":"a"}\n', [['a']]),
    'a JSON caption that is an object': ('a.jsonl', '{"image":"0.jpg","caption":"a"}\n'
                                         '{"image":"1.jpg","caption":{"raw":"b"}}\n', 'line 2'),
    'a line that is no JSON': ('a.jsonl', '{"image":"0.jpg","caption":"a"}\n{"image":\n', 'line 2'),
    'a line separator of Unicode in JSON': ('a.jsonl', '{"image":"0.jpg","caption":"a\u2028b"}\n', [['a\u2028b']]),
    'lists written by NumPy': ('a.csv', CSV + """0.jpg,"['a cat' 'a dog']"\n1.jpg,"['x'\n 'y']"\n""",
                               [['a cat', 'a dog'], ['x', 'y']]),
    'one plain cell among lists': ('a.csv', CSV + """0.jpg,"['a', 'b']"\n1.jpg,c\n""", [['a', 'b'], ['c']]),
    'a damaged list among lists': ('a.csv', CSV + """0.jpg,"['a', 'b']"\n1.jpg,"['a', 'b"\n""", 'row 2: .*like a list'),
    'numbers in brackets': ('a.csv', f'{CSV}0.jpg,[1]\n1.jpg,[2]\n', [['[1]'], ['[2]']]),
    'quotes written with a backslash': ('a.csv', f'{CSV}0.jpg,"a \\"b\\" c"\n', 'line 2: a quote in a cell is written'),
    'a row without an image': ('a.csv', f'{CSV}0.jpg,one\n,two\n', '1 of 2 rows name no image, such as row 2'),
    'blank lines': ('a.csv', f'\n\n{CSV}\n0.jpg,one\n\n1.jpg,two\n\n', [['one'], ['two']]),
    'a file of blank lines': ('a.csv', '\n\n', 'is empty'),
    'lines with a cell too many': ('a.csv', f'{CSV}0.jpg,one, two\n', 'do not have 2 cells'),
    'a suffix in upper case': ('A.CSV', f'{CSV}0.jpg,one\n', [['one']]),
    'UTF-16 without a mark': ('a.csv', f'{CSV}0.jpg,one\n'.encode('utf-16-le').decode('latin-1'),
                              'is not UTF-8; to conv'),
    'images that are not there': ('a.csv', f'{CSV}x.jpg,one\n', 'set training.data.image_dir'),
    'addresses of images': ('a.csv', 'url,caption\nhttp://x/0.jpg,one\n', 'download them first'),
    'a JSON caption that is NaN': ('a.jsonl', '{"image":"0.jpg","caption":NaN}\n{"image":"1.jpg","caption":"a"}\n',
                                   [None, ['a']]),
    'a JSON caption in nested lists': ('a.jsonl', '{"image":"0.jpg","caption":[["a"]]}\n', 'a caption must be a text'),
    'half a character in JSON': ('a.jsonl', '{"image":"0.jpg","caption":"a\\ud800"}\n',
                                 'line 1: .*half of a character'),
    'several images in a JSON line': ('a.jsonl', '{"image":["0.jpg","1.jpg"],"caption":"a"}\n',
                                      'column of images holds'),
    'a JSON line without an image': ('a.jsonl', '{"caption":"a"}\n{"image":"1.jpg","caption":"b"}\n', 'row 1'),
    'JSON nested without end': ('a.jsonl', '{"image":"0.jpg","caption":' + '['*20_000 + '\n', 'line 1'),
    'two JSON objects in a line': ('a.jsonl', '{"image":"0.jpg","caption":"a"}{"image":"1.jpg","caption":"b"}\n',
                                   [['a'], ['b']]),
}


@pytest.mark.parametrize('name', TABLES)
def test_table_is_read_right_or_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for i in range(4): Image.new('RGB', (8, 8), (i, 0, 0)).save(f'{i}.jpg')
    file, text, expected = TABLES[name]
    (tmp_path/file).write_bytes(text.encode('latin-1' if '\0' in text else 'utf-8'))
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as e: open_table(file)
        assert file in str(e.value) and '\n' not in str(e.value)
    else:
        source = open_table(file)
        for i, captions in enumerate(expected):
            if captions is None:
                with pytest.raises(BadSample): source.captions(i)
            else: assert [c.split() for c in source.captions(i)] == [c.split() for c in captions]
        assert len(source) == len(expected)


@pytest.mark.parametrize('separator', ['\u2028', '\x0b', '\x85', '\x0c', '\u2029'])
def test_separators_within_a_line_do_not_split_captions(tmp_path, separator):
    Image.new('RGB', (8, 8)).save(tmp_path/'a.jpg')
    (tmp_path/'a.txt').write_bytes(f'one{separator}two\r\nthree\n'.encode())
    assert FolderSource(tmp_path).captions(0) == [f'one{separator}two', 'three']
    with tarfile.open(tmp_path/'a.tar', 'w') as tar:
        for name in ('a.jpg', 'a.txt'): tar.add(tmp_path/name, name)
    assert ShardSource(str(tmp_path/'a.tar')).captions(0) == [f'one{separator}two', 'three']


def png(value, size=(8, 8)):
    Image.new('RGB', size, (20*value, 0, 0)).save(out := io.BytesIO(), 'PNG')
    return out.getvalue()

NAMES, FILES, WORDS = ['0.png', '1.png', '2.png'], [png(i) for i in range(3)], ['a', 'b', 'c']
DATES = [datetime.datetime(2020, 1, 2, 10)]*3
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(np.arange(4, dtype=np.int32)),
                                                  pa.py_buffer(b'a\xffc')])
ALONE, TWO = [['a'], ['b'], ['c']], [['a', 'x'], ['b', 'y'], None]
# name: (column of images, column of captions, captions of all images or a part of the message)
COLUMNS = {
    'large_string': (pa.array(NAMES, pa.large_string()), pa.array(WORDS, pa.large_string()), ALONE),
    'dictionaries': (pa.array(NAMES).dictionary_encode(), pa.array(WORDS).dictionary_encode(), ALONE),
    'a large list': (NAMES, pa.array(TWO, pa.large_list(pa.string())), TWO),
    'a list of a fixed size': (NAMES, pa.array(TWO, pa.list_(pa.string(), 2)), TWO),
    'a list of dictionaries': (NAMES, pa.array(TWO, pa.list_(pa.dictionary(pa.int32(), pa.string()))), TWO),
    'an empty list, a null in a list': (NAMES, pa.array([['a', None], [], [None]]), [['a'], None, None]),
    'a struct as caption': (NAMES, pa.array([dict(raw=w) for w in WORDS]), 'a caption must be a text'),
    'a list of structs': (NAMES, pa.array([[dict(raw=w, id=1)] for w in WORDS]), 'a caption must be a text'),
    'a list of lists': (NAMES, pa.array([[[w]] for w in WORDS]), 'a caption must be a text'),
    'a map': (NAMES, pa.array([[('en', w)] for w in WORDS], pa.map_(pa.string(), pa.string())), 'a caption must be'),
    'integers': (NAMES, pa.array([1, None, 3]), [['1'], None, ['3']]),
    'timestamps': (NAMES, pa.array(DATES), [['2020-01-02', '10:00:00']]*3),
    'dates in lists': (NAMES, pa.array([[d.date()] for d in DATES]), [['2020-01-02']]*3),
    'truth values': (NAMES, pa.array([True, False, None]), [['true'], ['false'], None]),
    'only nulls': (NAMES, pa.nulls(3), [None]*3),
    'texts stored as bytes': (pa.array([n.encode() for n in NAMES]), pa.array([w.encode() for w in WORDS]), ALONE),
    'bytes that are no text': (NAMES, pa.array([b'a', b'\xff', b'c']), 'row 1 is not UTF-8'),
    'a text that is not UTF-8': (NAMES, NOT_UTF8, 'row 1 is not UTF-8'),
    'JSON lists, one plain cell': (NAMES, pa.array(['["a","x"]', 'b', '["c"]']), [['a', 'x'], ['b'], ['c']]),
    'JSON lists, a plain cell first': (NAMES, pa.array(['a', '["b","x"]', None]), [['a'], ['b', 'x'], None]),
    'JSON lists, one damaged': (NAMES, pa.array(['["a","x"]', '["b"', '["c"]']), 'row 1: .*starts like a list'),
    'images as bytes and path': (pa.array([dict(bytes=f, path=None) for f in FILES]), WORDS, ALONE),
    'images as a path': (pa.array([dict(bytes=None, path=n) for n in NAMES]), WORDS, ALONE),
    'images as bytes alone': (pa.array([dict(bytes=f) for f in FILES]), WORDS, ALONE),
    'images as an object without both': (pa.array([dict(url=n) for n in NAMES]), WORDS, 'an image must be'),
    'images as large_binary': (pa.array(FILES, pa.large_binary()), WORDS, ALONE),
    'images as a dictionary of bytes': (pa.array(FILES).dictionary_encode(), WORDS, ALONE),
    'images in lists': (pa.array([[f] for f in FILES]), WORDS, 'an image must be'),
    'images as lists of numbers': (pa.array([list(f) for f in FILES], pa.list_(pa.uint8())), WORDS, 'an image must be'),
    'a null among images': (pa.array([FILES[0], None, FILES[2]]), WORDS, 'row 1 cannot be read .* .empty file'),
    'a null among names': (pa.array([NAMES[0], None, NAMES[2]]), WORDS, 'rows name no image, such as row 1'),
    'no row': (pa.array([], pa.binary()), pa.array([], pa.string()), 'contains no row'),
}


def read_all(source):
    "Return the captions of all images, None where an image has none; all images must be readable."
    def read(i):
        try: return [word for c in source.captions(i) for word in c.split()]
        except BadSample as e:
            assert 'contains no caption' in str(e)
    for i in range(len(source)): source.pixels(i)
    assert source.sizes().min() > 0
    return [read(i) for i in range(len(source))]


def assert_right_or_one_line(read, expected, place):
    "Check that a function returns what is expected, or raises an error of one line that names the place."
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as e: read()
        assert place in str(e.value) and '\n' not in str(e.value)
    else: assert read() == expected


@pytest.mark.parametrize('name', COLUMNS)
def test_parquet_column_is_read_right_or_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for n, f in zip(NAMES, FILES): Path(n).write_bytes(f)
    images, captions, expected = COLUMNS[name]
    pq.write_table(pa.table(dict(image=images, caption=captions)), 'a.parquet', row_group_size=2)
    assert_right_or_one_line(lambda: read_all(open_source('a.parquet', 'train')), expected, 'a.parquet')
    if not isinstance(expected, str):
        assert [open_source('a.parquet', 'train').pixels(i)[0, 0, 0] for i in range(3)] == [0, 20, 40]


@pytest.mark.parametrize('data', [b'', b'PAR1 and then words', 'cut', 'twice'], ids=['empty', 'words', 'cut', 'twice'])
def test_damaged_parquet_file_is_refused_in_one_line(tmp_path, data):
    names = ['image', 'caption', 'caption'] if data == 'twice' else ['image', 'caption', 'other']
    pq.write_table(pa.table([FILES, WORDS, WORDS], names=names), tmp_path/'a.parquet')
    whole = (tmp_path/'a.parquet').read_bytes()
    if data != 'twice': (tmp_path/'a.parquet').write_bytes(whole[:-20] if data == 'cut' else data)
    with pytest.raises(UserError, match="2 columns called 'caption'" if data == 'twice' else 'write it again') as e:
        open_source(tmp_path/'a.parquet', 'train')
    assert 'a.parquet' in str(e.value) and '\n' not in str(e.value)


def test_parquet_file_that_is_damaged_later_costs_an_image_and_no_traceback(tmp_path):
    pq.write_table(pa.table(dict(image=FILES, caption=WORDS)), tmp_path/'a.parquet')
    source = open_source(tmp_path/'a.parquet', 'train')
    (tmp_path/'a.parquet').write_bytes(b'words')
    with pytest.raises(BadSample, match='a.parquet, row 1 cannot be read'): source.pixels(1)


FIRST = [('1.png', FILES[1]), ('1.txt', b'b')]
PAGE = 'a cat\non a mat'
# name: (files of the shard, captions of all images or a part of the message, part of the warning)
SHARDS = {
    'several lines': ([('0.png', FILES[0]), ('0.txt', PAGE)], [['a', 'cat', 'on', 'a', 'mat']], None),
    'a list in JSON': ([('0.png', FILES[0]), ('0.json', '{"caption": ["a", "b"]}')], [['a', 'b']], None),
    'a number in JSON': ([('0.png', FILES[0]), ('0.json', '{"caption": 3}')], [['3']], None),
    'null and NaN in JSON': ([('0.png', FILES[0]), ('0.json', '{"caption": null}'), ('1.png', FILES[1]),
                              ('1.json', '{"caption": NaN}')], [None, None], None),
    'an object in JSON': ([('0.png', FILES[0]), ('0.json', '{"caption": {"raw": "a"}}')],
                          "a.tar/0.png: field 'caption'", None),
    'a list as JSON': ([('0.png', FILES[0]), ('0.json', '["a"]')], 'a.tar/0.png: the JSON must be an object', None),
    'JSON without a caption': ([('0.png', FILES[0]), ('0.json', '{"x": "a"}')], 'a.tar/0.png: .* its fields: x', None),
    'JSON that is cut short': ([('0.png', FILES[0]), ('0.json', '{"caption"')], 'a.tar/0.png: the JSON cannot', None),
    'files of macOS': ([('._0.png', b'x'), ('0.png', FILES[0]), ('._0.txt', b'x'), ('0.txt', b'a')], [['a']], None),
    'suffixes in upper case': ([('0.PNG', FILES[0]), ('0.TXT', b'a')], [['a']], None),
    'an image without a text': ([('0.png', FILES[0]), *FIRST], [['b']], 'image without text'),
    'a text without an image': ([('0.txt', b'a'), *FIRST], [['b']], 'no image'),
    'a file twice': ([('0.png', FILES[0]), ('0.txt', b'a'), ('0.txt', b'x')], [['a']], 'two files of the same name'),
    'two images of a name': ([('0.png', FILES[0]), ('0.jpg', FILES[1]), ('0.txt', b'a')], [['a']], 'second image'),
    'a mask beside the image': ([('0.mask.png', b''), ('0.png', FILES[0]), ('0.txt', b'a')], [['a']], None),
    'names with several dots': ([('0.1.png', FILES[0]), ('0.1.txt', b'a'), ('0.2.png', FILES[1]), ('0.2.txt', b'b')],
                                [['a'], ['b']], None),
    'a text that is not UTF-8': ([('0.png', FILES[0]), ('0.txt', b'caf\xe9')], 'a.tar/0.png .* not UTF-8', None),
    'an empty image': ([('0.png', b''), ('0.txt', b'a')], 'a.tar/0.png cannot be read .* .empty file', None),
    'images and texts apart': ([('0.png', FILES[0]), ('1.png', FILES[1]), ('0.txt', b'a'), ('1.txt', b'b')],
                               'adjacent in the tar', 'image without text'),
    'no file': ([], 'contains no pair', '0 pairs'),
}


def write_shard(path, files):
    with tarfile.open(path, 'w') as tar:
        for name, data in files:
            info, data = tarfile.TarInfo(name), data if isinstance(data, bytes) else data.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def at(tmp_path, monkeypatch):
    "Work in an empty folder, with a cache of its own."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MEMORY_VLM_CACHE', str(tmp_path/'cache'))
    return tmp_path


@pytest.mark.parametrize('name', SHARDS)
def test_shard_is_read_right_or_refused_in_one_line(at, name):
    files, expected, warned = SHARDS[name]
    write_shard('a.tar', files)
    def read():
        source = open_source('a.tar', 'train')
        if isinstance(expected, str):
            for i in range(len(source)): source.captions(i), source.pixels(i)
        return read_all(source)
    with warnings.catch_warnings(record=True, action='always') as caught:
        assert_right_or_one_line(read, expected, 'a.tar')
    said = [str(w.message) for w in caught if 'a.tar' in str(w.message)]
    assert len(said) == bool(warned) and all(warned in s for s in said)


def test_lines_of_a_shard_are_captions_unless_its_json_says_otherwise(at):
    write_shard('a.tar', [('0.png', FILES[0]), ('0.txt', PAGE), ('1.png', FILES[1]), ('1.txt', PAGE),
                          ('1.json', json.dumps(dict(caption=PAGE))), ('2.png', FILES[2]), ('2.txt', PAGE),
                          ('2.json', json.dumps(dict(caption='another', alt='b')))])
    source = open_source('a.tar', 'train')
    assert [source.captions(i) for i in range(3)] == [PAGE.split('\n'), [PAGE], PAGE.split('\n')]
    assert open_source('a.tar', 'train', caption_key='alt').captions(2) == ['b']
    own = ShardSource(make_shards(source, 'own')) # our own files keep the number of captions
    assert [len(own.captions(i)) for i in range(3)] == [2, 1, 2]


@pytest.mark.parametrize('name, data, part', [
    ('a.tar', b'not a tar'*100, 'contains no pair'), ('a.tar.gz', b'\x1f\x8b words', 'gunzip it first'),
    ('a.tar.bz2', b'BZh9 words', 'bunzip2 it first'), ('b.tar', None, 'shards are missing')])
def test_file_that_is_no_shard_is_refused_in_one_line(at, name, data, part):
    if data: Path(name).write_bytes(data)
    with warnings.catch_warnings(action='ignore'):
        assert_right_or_one_line(lambda: open_source(name, 'train'), part, name)


def test_folder_of_shards_is_refused_with_the_pattern_to_give(at):
    Path('a').mkdir()
    write_shard('a/0.tar', FIRST)
    assert_right_or_one_line(lambda: open_source('a', 'train'), 'holds 1 tar files; .* give', 'a/*.tar')
    assert len(open_source('a/*.tar', 'train')) == 1


def saved(image, kind, **options):
    "Return an image file."
    image.save(out := io.BytesIO(), kind, **options)
    return out.getvalue()

RED = Image.new('RGB', (8, 8), 'red')
NOISE = Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8))
PALETTE = Image.new('P', (8, 8), 1)
PALETTE.putpalette([0, 0, 0, 255, 0, 0])
HUGE_HEAD = b'IHDR' + (60_000).to_bytes(4, 'big')*2 + FILES[0][24:29]
HUGE_PNG = FILES[0][:12] + HUGE_HEAD + zlib.crc32(HUGE_HEAD).to_bytes(4, 'big') + FILES[0][33:]
BAD_CRC = FILES[0][:-20] + b'x' + FILES[0][-19:]
# name: (file name, content, color of the first pixel or the reason why it cannot be read)
IMAGES = {
    'CMYK': ('a.jpg', saved(RED.convert('CMYK'), 'JPEG', quality=95), (254, 0, 0)),
    'gray': ('a.jpg', saved(Image.new('L', (8, 8), 90), 'JPEG'), (90, 90, 90)),
    'gray with transparency': ('a.png', saved(Image.new('LA', (8, 8), (90, 0)), 'PNG'), (255, 255, 255)),
    'gray, opaque, LA': ('a.png', saved(Image.new('LA', (8, 8), (90, 255)), 'PNG'), (90, 90, 90)),
    'half transparent': ('a.png', saved(Image.new('RGBA', (8, 8), (255, 0, 0, 128)), 'PNG'), (255, 127, 127)),
    'palette': ('a.gif', saved(PALETTE, 'GIF'), (255, 0, 0)),
    'palette with a transparent color': ('a.png', saved(PALETTE, 'PNG', transparency=1), (255, 255, 255)),
    '16 bits': ('a.png', saved(Image.fromarray(np.full((8, 8), 90*257, np.uint16)), 'PNG'), (90, 90, 90)),
    '1 bit': ('a.png', saved(Image.new('1', (8, 8), 1), 'PNG'), (255, 255, 255)),
    'float': ('a.tif', saved(Image.fromarray(np.full((8, 8), .5, np.float32)), 'TIFF'), (127, 127, 127)),
    'animated GIF': ('a.gif', saved(RED, 'GIF', save_all=True, append_images=[Image.new('RGB', (8, 8))]), (255, 0, 0)),
    'animated WebP': ('a.webp', saved(RED, 'WebP', save_all=True, append_images=[Image.new('RGB', (8, 8))],
                                      lossless=True), (255, 0, 0)),
    'TIFF of two pages': ('a.tiff', saved(RED, 'TIFF', save_all=True, append_images=[Image.new('RGB', (8, 8))]),
                          (255, 0, 0)),
    'a PNG called .jpg': ('a.jpg', saved(RED, 'PNG'), (255, 0, 0)),
    'a JPEG called .PNG': ('a.PNG', saved(RED, 'JPEG', quality=95), (254, 0, 0)),
    'bytes after the end': ('a.jpg', saved(RED, 'JPEG', quality=95) + b'more'*99, (254, 0, 0)),
    'a name of many scripts': ('\u00e9\u732b \U0001f436.png', saved(RED, 'PNG'), (255, 0, 0)),
    'a name that is not UTF-8': (os.fsdecode(b'caf\xe9.png'), saved(RED, 'PNG'), (255, 0, 0)),
    'a name with a line break': ('a\nb.png', saved(RED, 'PNG'), (255, 0, 0)),
    'a JPEG that is cut short': ('a.jpg', saved(NOISE, 'JPEG')[:900], 'cut short'),
    'a progressive JPEG that is cut short': ('a.jpg', saved(NOISE, 'JPEG', progressive=True)[:900], 'cut short'),
    'a PNG that is cut short': ('a.png', saved(NOISE, 'PNG')[:900], 'cut short'),
    'a GIF that is cut short': ('a.gif', saved(NOISE, 'GIF')[:900], 'cut short'),
    'a WebP that is cut short': ('a.webp', saved(NOISE, 'WebP')[:300], 'damaged|not an image|cut short'),
    'a PNG with a wrong checksum': ('a.png', BAD_CRC, 'damaged|cut short'),
    'no byte': ('a.jpg', b'', 'empty file'),
    'only zeros': ('a.jpg', bytes(999), 'not an image'),
    'a web page': ('a.jpg', b'<!DOCTYPE html><p>404', 'not an image'),
    'a drawing': ('a.png', b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not an image'),
    'a huge size in the header': ('a.png', HUGE_PNG, 'too many pixels'),
    'a folder called a.jpg': ('a.jpg', None, 'is a directory'),
    'a broken link': ('a.jpg', '-> gone.jpg', 'missing file'),
    'a link to itself': ('a.jpg', '-> a.jpg', 'too many levels of symbolic links'),
}


def write_image(name, data):
    if data is None: Path(name).mkdir()
    elif isinstance(data, str): Path(name).symlink_to(data.removeprefix('-> '))
    else: Path(name).write_bytes(data)


@pytest.mark.parametrize('name', IMAGES)
def test_image_is_read_right_or_counted_by_a_reason(at, name):
    file, data, expected = IMAGES[name]
    write_image(file, data)
    source = FileSource()
    source.images = PathList([file])
    for side in (None, 2):
        if isinstance(expected, str):
            with pytest.raises(BadSample, match='cannot be read') as e: source.pixels_for(0, side)
            assert e.value.reason in expected.split('|') and file in str(e.value)
            assert '\n' not in str(e.value).replace(file, '')
        else: assert np.abs(source.pixels_for(0, side)[0, 0] - np.array(expected)).max() < 3 # JPEG is lossy


A, B = ('a.png', FILES[0]), ('b.png', FILES[1])
# name: (files in the folder x, captions of all images or a part of the message, part of the warning)
FOLDERS = {
    'suffixes in upper case': ([('a.PNG', FILES[0]), ('a.TXT', b'one')], [['one']], None),
    'a caption in each line': ([A, ('a.txt', b'one\r\ntwo\n\n')], [['one', 'two']], None),
    'a byte order mark': ([A, ('a.txt', '\ufeffone'.encode())], [['one']], None),
    'a text of blanks': ([A, ('a.txt', b' \n\t'), B, ('b.txt', b'b')], [None, ['b']], None),
    'a text that is not UTF-8': ([A, ('a.txt', b'caf\xe9')], 'a.txt .* is not UTF-8', None),
    'a text that is a folder': ([A, ('a.txt', None)], 'contains no pair', None),
    'a text that is a broken link': ([A, ('a.txt', '-> gone.txt')], 'a.txt cannot be read as text', None),
    'an image without a text': ([A, ('a.txt', b'one'), B], [['one']], '1 images without a text'),
    'a text without an image': ([A, ('a.txt', b'one'), ('b.txt', b'two')], [['one']], '1 texts without an image'),
    'hidden files': ([A, ('a.txt', b'one'), ('._a.png', b'x'), ('._a.txt', b'x'), ('.cache/b.png', b'x')],
                     [['one']], None),
    'folders in folders': ([('1/2/a.png', FILES[0]), ('1/2/a.txt', b'one')], [['one']], None),
    'folders in a circle': ([A, ('a.txt', b'one'), ('again', '-> .')], [['one']], None),
    'an image in a folder of its suffix': ([('x.png/a.png', FILES[0]), ('x.png/a.txt', b'one')], [['one']], None),
    'no file': ([], 'contains no pair: 0 images', None),
    'one image': ([A], 'contains no pair: 1 images', None),
    'only texts': ([('a.txt', b'one')], 'contains no pair: 0 images', None),
    'images of an unknown kind': ([('a.heic', b'x'), ('a.txt', b'one')], 'contains no pair: 0 images', None),
    'one class': ([('cat/a.png', FILES[0]), ('cat/b.png', FILES[1])], 'contains no pair: 2 images', None),
    'class folders': ([('cat/a.png', FILES[0]), ('2_big-dog/b.png', FILES[1])],
                      [['a', 'photo', 'of', 'a', 'big', 'dog'], ['a', 'photo', 'of', 'a', 'cat']], None),
    'a table without its images': ([('metadata.csv', b'file_name,text\na.png,one\n')],
                                   'none of 1 images was found', None),
    'COCO without captions': ([('captions.json', b'{"images": [], "annotations": [{"bbox": []}]}')],
                              'without captions', None),
    'JSON that is cut short': ([('captions.json', b'{"a.png": "on')], 'captions.json cannot be read as JSON', None),
    'JSON nested without end': ([('captions.json', b'['*99_999)], 'captions.json cannot be read as JSON', None),
    'COCO with other ids': ([A, ('captions.json', b'{"images": [{"id": 1, "file_name": "a.png"}], "annotations": '
                                                  b'[{"image_id": "1", "caption": "one"}]}')],
                            'no caption of its images', None),
    'COCO with a caption too many': ([A, ('captions.json', b'{"images": [{"id": 1, "file_name": "a.png"}], '
                                          b'"annotations": [{"image_id": 1, "caption": 3}, '
                                          b'{"image_id": 2, "caption": "x"}]}')],
                                     [['3']], '1 images with captions are not in the list'),
    'a data set whose list is damaged': ([('state.json', b'{')], 'state.json does not list Arrow files', None),
    'a data set without its file': ([('state.json', b'{"_data_files": [{"filename": "a.arrow"}]}')], 'a.arrow', None),
    'a data set with a damaged file': ([('state.json', b'{"_data_files": [{"filename": "a.arrow"}]}'),
                                        ('a.arrow', b'words')], 'a.arrow cannot be read as Arrow', None),
}


@pytest.mark.parametrize('name', FOLDERS)
def test_folder_is_read_right_or_refused_in_one_line(at, name):
    files, expected, warned = FOLDERS[name]
    Path('x').mkdir()
    for file, data in files:
        (Path('x')/file).parent.mkdir(parents=True, exist_ok=True)
        write_image(f'x/{file}', data)
    def read():
        source = open_source('x', 'train')
        if isinstance(expected, str): return [[word for c in source.captions(0) for word in c.split()]]
        return read_all(source)
    with warnings.catch_warnings(record=True, action='always') as caught:
        assert_right_or_one_line(read, expected, 'x')
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    assert len(said) == bool(warned) and all(warned in s for s in said)


def command(capsys, *words):
    "Run a command in this process. Returns the exit status, the output and the lines on standard error."
    try: status = main(words)
    except SystemExit as e: status = e.code
    out, err = capsys.readouterr()
    return status or 0, out, [l for l in err.splitlines() if l.strip()]


def put_pairs(count, caption='{}'):
    Path('x').mkdir()
    for i in range(count):
        Path(f'x/{i}.png').write_bytes(png(i))
        Path(f'x/{i}.txt').write_text(caption.format(i))


@pytest.mark.parametrize('data, part', [
    ('gone', 'does not exist'), ('x', 'contains no pair'), ('a.csv', 'is empty'), ('a.parquet', 'write it again'),
    ('a.tar', 'contains no pair'), ('a.md', 'unknown data format'), ('x + gone', 'contains no pair'),
    ('builtin:scene', 'scenes'), ('x*0', 'weights must be above 0'), ('a-{0..3}.tar', '4 of 4 shards are missing'),
    ('', 'is empty')])
def test_check_of_data_that_cannot_be_opened_exits_with_status_2(at, capsys, data, part):
    Path('x').mkdir()
    for name in ('a.csv', 'a.parquet', 'a.tar', 'a.md'): Path(name).touch()
    with warnings.catch_warnings(action='ignore'): status, out, lines = command(capsys, 'check', data)
    assert [status, out, len(lines)] == [2, '', 1] and re.search(part, lines[0])
    assert data in lines[0] or data == 'x + gone'


def test_check_counts_what_is_bad_and_exits_with_status_1(at, capsys):
    put_pairs(3, caption=' ')
    status, out, _ = command(capsys, 'check', 'x', '--sheet', '')
    assert status == 1 and '3  no caption' in out and 'Training would fail: 3 of 3 cannot be used' in out


@pytest.mark.parametrize('file, text, rows, lines', [
    ('a.csv', f'{CSV}0.png,one\n1.png,two\n', 2, 2), ('a.csv', f'{CSV}0.png,"one\n\nand two"\n1.png,two\n\n', 2, 3),
    ('a.tsv', f'{TSV}0.png\tone\n', 1, 1), ('a.csv', f'{CSV}0.png,one\r1.png,two\r', 2, 2),
    ('a.csv', f'{CSV}0.png,"one\n1.png;two\n2.png;three"\n', 1, 3),
    ('a.jsonl', '{"image": "0.png", "caption": "a"}\n\n{"image": "1.png", "caption": "b"}\n', 2, 2)])
def test_check_compares_rows_and_lines_in_one_line(at, file, text, rows, lines):
    for i, f in enumerate(FILES): Path(f'{i}.png').write_bytes(f)
    Path(file).write_bytes(text.encode())
    report = check(file)
    assert (report.rows, report.lines) == (rows, lines) == tuple(report.to_dict()[k] for k in ('rows', 'lines'))
    line, = (l for l in str(report).splitlines() if l.startswith('rows'))
    assert f'{rows} rows from {lines} lines' in line and ('a quote is not closed' in line) == (rows < lines)


# words of a configuration and a part of the message
WORDS_OF_FITS = {
    'an unknown group': ('model/memory=nothing', 'model/memory=nothing is unknown. One of: '),
    'a word for a number': ('training.batch_size=many', 'training.batch_size'),
    'a fraction for a count': ('training.batch_size=2.5', 'training.batch_size'),
    'a negative count': ('training.batch_size=-1', 'training.batch_size=-1 must be at least 1'),
    'no batch': ('training.batch_size=0', 'training.batch_size=0 must be at least 1'),
    'a rate that is NaN': ('training.learning_rate=nan', 'training.learning_rate=nan must be'),
    'an infinite rate': ('training.learning_rate=inf', 'training.learning_rate=inf must be'),
    'a negative rate': ('training.learning_rate=-0.1', 'training.learning_rate=-0.1 must be'),
    'a share above 1': ('training.data.val_fraction=1.5', 'training.data.val_fraction=1.5 must be'),
    'a share that is NaN': ('training.data.max_bad_fraction=nan', 'training.data.max_bad_fraction=nan must be'),
    'an unknown choice': ('training.data.augmentation=strongest', "did you mean 'strong'"),
    'a list for a number': ('training.epochs=[1,2]', 'training.epochs'),
    'no value': ('training.epochs=null', 'training.epochs'),
}


@pytest.mark.parametrize('name', WORDS_OF_FITS)
def test_configuration_is_refused_in_one_line(name):
    words, part = WORDS_OF_FITS[name]
    with pytest.raises(UserError) as e: compose([words], config_name='quickstart')
    assert part in str(e.value) and '\n' not in str(e.value)


# words of `memory_vlm fit` and a part of the message
FITS = {
    'an unknown key': ('training.epoch=3', "did you mean 'training.epochs'"),
    'an unknown configuration': ('--config-name=quick', 'quickstart'),
    'data that do not exist': ('training.data.train_path=gone', "'gone' does not exist"),
    'an empty folder': ('training.data.train_path=empty', "'empty' contains no pair"),
    'a folder of one image': ('training.data.train_path=one', 'one'),
    'captions that are all empty': ('training.data.train_path=blank', 'no caption'),
    'a template without a place': ('training.data.train_path=classes training.data.templates=[photo]', 'must hold {}'),
    'a table of no rows': ('training.data.train_path=a.csv', 'a.csv has no line after the column names'),
    'a column that does not exist': ('training.data.train_path=b.csv training.data.caption_key=words',
                                     "no column 'words'"),
    'a damaged Parquet file': ('training.data.train_path=a.parquet', 'a.parquet cannot be read as Parquet'),
    'a missing shard': ('training.data.train_path="x-{0..3}.tar"', 'shards are missing'),
}


@pytest.mark.parametrize('name', FITS)
def test_fit_of_bad_input_exits_with_status_2(at, capsys, name):
    words, part = FITS[name]
    for folder, caption in (('one', 'a cat'), ('blank', ' ')):
        Path(folder).mkdir()
        for i in range(1 if folder == 'one' else 20):
            Path(f'{folder}/{i}.png').write_bytes(png(i % 12))
            Path(f'{folder}/{i}.txt').write_text(caption)
    Path('empty').mkdir()
    for i in range(2):
        Path(f'classes/{i}').mkdir(parents=True)
        Path(f'classes/{i}/a.png').write_bytes(png(i))
    Path('a.csv').write_text(CSV)
    Path('b.csv').write_text(f'{CSV}one/0.png,a cat\n')
    Path('a.parquet').touch()
    with warnings.catch_warnings(action='ignore'):
        status, _, lines = command(capsys, 'fit', '--config-name=quickstart', 'training.run_dir=run',
                                   'training.batch_size=8', 'training.data.val_path=', *words.split(' '))
    assert status == 2 and any(part in l for l in lines) and not any('Traceback' in l for l in lines), lines
    assert not Path('run/checkpoints').exists()

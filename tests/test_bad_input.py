"""Odd and damaged tables are read right, or refused in one line that names the file and the cure."""
import pytest
import tarfile
from memory_vlm.core import UserError
from memory_vlm.data.base import BadSample
from memory_vlm.data.folders import FolderSource
from memory_vlm.data.shards import ShardSource
from memory_vlm.data.tables import open_table
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
}


@pytest.mark.parametrize('name', TABLES)
def test_table_is_read_right_or_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for i in range(4): Image.new('RGB', (8, 8), (i, 0, 0)).save(f'{i}.jpg')
    file, text, expected = TABLES[name]
    (tmp_path/file).write_bytes(text.encode())
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

"""Images come out upright as Pillow's `exif_transpose` shows them, wherever a file states its orientation."""
import io
import itertools
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import struct
import tarfile
from memory_vlm.data.base import BadSample, PixelCache, _read_pixels
from memory_vlm.data.loaders import make_loader
from memory_vlm.data.sources import open_source
from PIL import Image, ImageCms, ImageOps

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(256, size=(6, 8, 3), dtype=np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)


def segment(marker, data): return bytes([0xff, marker]) + (len(data) + 2).to_bytes(2, 'big') + data


def tiff(orientation, order='<'): # The smallest TIFF header with one tag
    mark = b'II' if order == '<' else b'MM'
    return mark + struct.pack(order + 'HIHHHIHHI', 42, 8, 1, 0x112, 3, 1, orientation, 0, 0)


def exif(orientation, order='<'): return segment(0xe1, b'Exif\0\0' + tiff(orientation, order))


def packet(tag): return f'<x:xmpmeta><rdf:RDF><rdf:Description {tag}</rdf:RDF></x:xmpmeta>'.encode()


def xmp(orientation=None, element=False):
    tag = '/>'
    if orientation: tag = f'tiff:Orientation="{orientation}"/>'
    if element: tag = f'><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>'
    return segment(0xe1, b'http://ns.adobe.com/xap/1.0/\0' + packet(tag))


EXTENDED = segment(0xe1, b'http://ns.adobe.com/xmp/extension/\0' + b'0'*32 + bytes(8)
                   + packet('tiff:Orientation="3"/>'))
ICC = segment(0xe2, b'ICC_PROFILE\0\1\1' + ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
JFIF = segment(0xe0, b'JFIF\0\1\1\0\0\1\0\1\0\0')

# Segments of a JPEG by the orientation that they state
PLACES = {
    'EXIF': exif,
    'EXIF, big endian': lambda o: exif(o, '>'),
    'XMP, EXIF': lambda o: xmp() + exif(o),
    'XMP with another orientation, EXIF': lambda o: xmp(9 - o) + exif(o, '>'),
    'EXIF, XMP': lambda o: exif(o) + xmp(),
    'EXIF, XMP with another orientation': lambda o: exif(o) + xmp(9 - o, element=True),
    'XMP attribute': xmp,
    'XMP element': lambda o: xmp(o, element=True),
    'XMP, after EXIF without an orientation': lambda o: segment(0xe1, b'Exif\0\0II*\0\x08\0\0\0' + bytes(6)) + xmp(o),
    'extended XMP, EXIF': lambda o: EXTENDED + exif(o),
    'XMP, extended XMP': lambda o: xmp(o) + EXTENDED,
    'JFIF, EXIF': lambda o: JFIF + exif(o),
    'JFIF, ICC, EXIF': lambda o: JFIF + ICC + exif(o),
    'ICC, XMP, EXIF': lambda o: ICC + xmp() + exif(o, '>'),
    'a comment, JFIF, XMP attribute': lambda o: segment(0xfe, b'words') + JFIF + xmp(o),
}


def jpeg(segments, image=PHOTO, **kwargs):
    "Return a JPEG file with these segments in front, in place of Pillow's own header."
    image.save(out := io.BytesIO(), 'JPEG', quality=95, **kwargs)
    data = out.getvalue()
    if data[2:4] == b'\xff\xe0': data = data[:2] + data[4 + int.from_bytes(data[4:6], 'big'):]
    return data[:2] + segments + data[2:]


def pillow(data, side=None):
    "Return the upright pixels of Pillow, at the size at which an image for `side` is decoded."
    image = Image.open(io.BytesIO(data))
    if side and min(image.size) >= 2*int(side*1.7): image.draft(None, (int(side*1.7),)*2)
    return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))


@pytest.mark.parametrize('place', PLACES)
def test_a_jpeg_is_upright_at_every_decode_size(place):
    for orientation, side in itertools.product(range(1, 9), (None, 200, 60, 30, 12)):
        data = jpeg(PLACES[place](orientation))
        seen = _read_pixels(data, place, side)
        assert np.array_equal(seen, pillow(data, side)), (orientation, side)
        assert (seen.shape[0] > seen.shape[1]) == (orientation > 4)


@pytest.mark.parametrize('mode', ['L', 'CMYK'])
def test_a_jpeg_of_another_color_space_is_upright(mode):
    for orientation, side in itertools.product(range(1, 9), (None, 30)):
        data = jpeg(xmp() + exif(orientation), PHOTO.convert(mode))
        assert np.abs(_read_pixels(data, mode, side).astype(int) - pillow(data, side)).max() < 2


@pytest.mark.parametrize('damage', [
    segment(0xe1, b'Exif\0\0no TIFF header'), segment(0xe1, b'Exif\0\0'),
    segment(0xe1, b'Exif\0\0II*\0\xff\xff\xff\xff'), exif(0), exif(9), exif(60000), xmp(9), xmp(0), segment(0xe1, b'')])
def test_a_damaged_orientation_leaves_a_jpeg_as_it_is(damage):
    for side in (None, 30): assert np.array_equal(_read_pixels(jpeg(damage), 'x', side), pillow(jpeg(b''), side))


# Other formats: file format, arguments of `save`
FORMATS = {
    'PNG': lambda o: dict(exif=tiff(o)), 'WebP': lambda o: dict(exif=tiff(o, '>'), lossless=True),
    'WebP with XMP': lambda o: dict(xmp=packet(f'tiff:Orientation="{o}"/>'), lossless=True),
    'TIFF': lambda o: dict(tiffinfo={0x112: o}), 'MPO': lambda o: dict(exif=b'Exif\0\0' + tiff(o), save_all=True,
                                                                       append_images=[PHOTO])}


@pytest.mark.parametrize('name', FORMATS)
def test_other_formats_are_upright(name):
    for orientation, side in itertools.product(range(1, 9), (None, 30)):
        PHOTO.resize((128, 96)).save(out := io.BytesIO(), name.split()[0], **FORMATS[name](orientation))
        seen, data = _read_pixels(out.getvalue(), name, side), out.getvalue()
        assert np.array_equal(seen, pillow(data, side if name == 'MPO' else None)), (orientation, side)
        assert (seen.shape[0] > seen.shape[1]) == (orientation > 4)


def test_every_source_and_the_cache_give_upright_images(tmp_path, monkeypatch):
    monkeypatch.setenv('MEMORY_VLM_CACHE', str(tmp_path/'cache'))
    files = [jpeg(PLACES[place](o)) for o, place in zip(range(2, 9), itertools.cycle(('XMP, EXIF', 'XMP element')))]
    folder = tmp_path/'folder'
    folder.mkdir()
    for i, data in enumerate(files):
        (folder/f'{i}.jpg').write_bytes(data)
        (folder/f'{i}.txt').write_text(f'image {i}')
    (tmp_path/'a.csv').write_text('image,caption\n' + ''.join(f'folder/{i}.jpg,image {i}\n' for i in range(7)))
    pq.write_table(pa.table(dict(image=files, caption=[f'image {i}' for i in range(7)])), tmp_path/'a.parquet')
    with tarfile.open(tmp_path/'a.tar', 'w') as tar:
        for p in sorted(folder.iterdir()): tar.add(p, p.name)
    for name in ('folder', 'a.csv', 'a.parquet', 'a.tar'):
        source = open_source(tmp_path/name, 'train')
        loader = make_loader(source, image_size=16, batch_size=7, augmentation='strong', train=True)
        plain = list(loader)
        source.set_cache(PixelCache(10**7))
        for i, data in enumerate(files):
            assert np.array_equal(source.pixels(i), pillow(data))
            for _ in range(2): assert np.array_equal(source.pixels_for(i, 16), pillow(data, 16))
        assert all((a == b).all() for one, other in zip(plain, loader, strict=True) for a, b in zip(one, other))


def test_a_jpeg_that_is_cut_short_is_reported_and_not_turned():
    with pytest.raises(BadSample, match='cut short'): _read_pixels(jpeg(xmp() + exif(6))[:3000], 'x')

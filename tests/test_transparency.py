"""Transparent images reach a model as its own library prepares them: on every way from a file to the model."""
import io
import json
import numpy as np
import open_clip
import pytest
import torch
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.data.base import PixelCache, _read_pixels
from memory_vlm.data.mixture import Mixture
from memory_vlm.data.sources import open_source
from memory_vlm.data.transforms import Preprocessing, center_crop
from memory_vlm.evaluation.models import _open_with_data, memory_clip_eval_model
from memory_vlm.hub.onnx import _model_facts
from memory_vlm.hub.open_clip import save_open_clip
from memory_vlm.learner import make_dls
from memory_vlm.models.pretrained import find_pretrained, with_pretrained
from memory_vlm.search import open_index
from memory_vlm.training.metrics import _plain_loader
from memory_vlm.training.run_dir import LoadedModel, _make_valid_dl
from memory_vlm.widgets.base import ImageSet
from pathlib import Path
from PIL import Image
from safetensors.torch import save_file

SIZES = {'wide': (150, 90), 'tall': (40, 70), 'exact': (64, 64)}


def saved(image, kind='PNG', **how):
    image.save(out := io.BytesIO(), kind, **how)
    return out.getvalue()


def transparent(size, seed=0, mode='RGBA'):
    "An image of random colors and alpha, smooth, with clear and opaque parts."
    x = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
    x[:, 3] = x[:, 3] * 3 - 1
    x = torch.nn.functional.interpolate(x, size[::-1], mode='bilinear').clamp(0, 1)[0].mul(255).byte()
    return Image.fromarray(x.permute(1, 2, 0).numpy()).convert(mode)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('transparent')
    for i, (name, size) in enumerate(SIZES.items()):
        for mode in ('RGBA', 'LA'):
            transparent(size, i, mode).save(folder/f'{name}-{mode}.png')
            (folder/f'{name}-{mode}.txt').write_text(f'{name} {mode}')
    return folder


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
    "A small CLIP as open_clip writes it."
    folder = tmp_path_factory.mktemp('theirs')
    cfg = dict(embed_dim=32, vision_cfg=dict(image_size=64, layers=1, width=64, head_width=32, patch_size=16),
               text_cfg=dict(context_length=16, width=32, heads=2, layers=1))
    (folder/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg={})))
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**cfg).state_dict(), folder/'open_clip_model.safetensors')
    return folder


@pytest.fixture(scope='module')
def ours(): return MemoryCLIP.from_config(compose(['model=tiny', 'model.memory.enabled=false', 'model.image_size=64',
                                                   'model.depth=1', 'model.text.depth=1']).model).eval()


def open_clip_pixels(folder, images):
    "What open_clip's own transform gives, uint8 (N,3,64,64)."
    *_, transform = open_clip.create_model_and_transforms(f'local-dir:{folder}')
    mean, std = (torch.tensor(v)[:, None, None] for v in (transform.transforms[-1].mean, transform.transforms[-1].std))
    files = sorted(images.glob('*.png'))
    return torch.stack([((transform(Image.open(f))*std + mean)*255).round().byte() for f in files])


def on_white(images):
    files = sorted(images.glob('*.png'))
    flat = []
    for f in files:
        image = Image.open(f).convert('RGBA')
        white = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
        flat.append(center_crop(torch.from_numpy(np.array(white)).permute(2, 0, 1), 64))
    return torch.stack(flat)


def loader_pixels(loader):
    "All images of a loader, by index."
    batches = [(images, index.unique_consecutive()) for images, _, index in loader]
    order = torch.cat([index for _, index in batches]).argsort()
    return torch.cat([images for images, _ in batches])[order]


def ways(model, images, words, tmp_path):
    "The pixels that each way from a file to the model gives."
    source = open_source(images, 'valid')
    yield 'evaluation', loader_pixels(memory_clip_eval_model(model).make_batches(source, 4))
    yield 'workers', loader_pixels(memory_clip_eval_model(model).make_batches(source, 4, 2))
    mixed = Mixture([source], [1])
    yield 'mixture', loader_pixels(memory_clip_eval_model(model).make_batches(mixed, 4))
    yield 'eval --data', loader_pixels(_open_with_data(LoadedModel(model), images, 'valid').loader)
    cache = PixelCache(2**24)
    source.set_cache(cache)
    for k in range(2): yield f'cache {k}', loader_pixels(memory_clip_eval_model(model).make_batches(source, 4))
    shown = ImageSet(source, model)
    yield 'widget', torch.stack([shown[i] for i in range(len(shown))])
    cfg = with_pretrained(compose(words + [f'training.data.{k}_path={images}' for k in ('train', 'val')]))
    dls = make_dls(cfg, torch.device('cpu'))
    parts = [Path(dl.source.file(i)) for dl in (dls.train, dls.valid) for i in range(len(dl.source))]
    order = [parts.index(f) for f in sorted(images.glob('*.png'))]
    for k in range(2):
        dls.train.set_epoch(k)
        yield f'training, epoch {k}', torch.cat([loader_pixels(dls.train), loader_pixels(dls.valid)])[order]
    yield 'metrics', loader_pixels(_plain_loader(source, cfg))
    yield 'a finished run', torch.cat([loader_pixels(dls.train), loader_pixels(_make_valid_dl(cfg))])[order]


WORDS = ['training.batch_size=1', 'training.data.num_workers=0', 'training.data.augmentation=none']


def test_every_way_is_open_clips(theirs, images, tmp_path):
    model = MemoryCLIP.from_pretrained(theirs)
    expected = open_clip_pixels(theirs, images)
    for way, seen in ways(model, images, ['model=base', f'model.pretrained={theirs}', *WORDS], tmp_path):
        assert torch.equal(seen, expected), way
    index = open_index(model, images, tmp_path/'index.safetensors')
    with torch.no_grad(): features = model.encode_image(expected, normalize=True)
    torch.testing.assert_close(torch.as_tensor(index.features).float(), features, rtol=0, atol=1e-3)
    assert (expected.int() - on_white(images).int()).abs().max() > 100 # these images can tell


def test_every_way_of_our_models_is_white(ours, images, tmp_path):
    expected = on_white(images)
    words = ['model=tiny', 'model.image_size=64', 'model.depth=1', 'model.text.depth=1', *WORDS]
    for way, seen in ways(ours, images, words, tmp_path): assert torch.equal(seen, expected), way
    index = open_index(ours, images, tmp_path/'index.safetensors')
    with torch.no_grad(): features = ours.encode_image(expected, normalize=True)
    torch.testing.assert_close(torch.as_tensor(index.features).float(), features, rtol=0, atol=1e-3)


def test_one_cache_for_both(theirs, ours, images):
    source, cache = open_source(images, 'valid'), PixelCache(2**24)
    source.set_cache(cache)
    pair = MemoryCLIP.from_pretrained(theirs), ours
    expected = open_clip_pixels(theirs, images), on_white(images)
    for _ in range(3):
        for model, right in zip(pair, expected):
            assert torch.equal(loader_pixels(memory_clip_eval_model(model).make_batches(source, 4)), right)


def test_export_and_back(theirs, ours, images, tmp_path):
    for model, expected, words in (
            (MemoryCLIP.from_pretrained(theirs), open_clip_pixels(theirs, images), 'after the resize'),
            (ours, on_white(images), 'put on white')):
        how = Preprocessing.of(model.cfg)
        for i, memory in enumerate((None, 'registers')):
            if memory and model is not ours: model = MemoryCLIP.from_pretrained(theirs, memory=memory)
            model.save_pretrained(tmp_path/f'{words}{i}')
            save_open_clip(model, tmp_path/f'{words}{i} open_clip')
            for end in ('', ' open_clip')[:2 - i]: # open_clip's format of memory is for open_clip
                again = MemoryCLIP.from_pretrained(tmp_path/f'{words}{i}{end}')
                assert Preprocessing.of(again.cfg) == how
                source = open_source(images, 'valid')
                assert torch.equal(loader_pixels(memory_clip_eval_model(again).make_batches(source, 4)), expected)
                assert words in (tmp_path/f'{words}{i}{end}/README.md').read_text(encoding='utf-8')
            written = json.loads((tmp_path/f'{words}{i} open_clip/open_clip_config.json').read_text())
            assert written['preprocess_cfg']['transparency'] == how.transparency
            assert _model_facts(model)['image']['transparency'] == how.transparency
            assert open_clip.create_model_and_transforms(f'local-dir:{tmp_path}/{words}{i} open_clip')
    with_note = (tmp_path/'put on white0 open_clip/README.md').read_text(encoding='utf-8')
    assert 'so\ngive it transparent images that are put on white' in with_note


def test_timm_drops_alpha_first(images, tmp_path):
    import timm
    name = 'test_vit'
    save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path/'w.safetensors')
    spec = find_pretrained(f'timm:{name}/{tmp_path}/w.safetensors')
    how = Preprocessing.of(spec.cfg)
    assert how.transparency == 'drop'
    source, transform = open_source(images, 'valid'), timm.data.create_transform(160)
    model = LoadedModel(timm.create_model(name), transform=transform)
    seen = loader_pixels(_open_with_data(model, images, 'valid').loader)
    for i, x in enumerate(seen):
        assert torch.equal(x, transform(Image.open(source.file(i)).convert('RGB')))
        rgba = torch.from_numpy(source.pixels_for(i, None, alpha=True).copy()).permute(2, 0, 1)
        pixels = center_crop(rgba, 64, how=how)
        rgb = torch.from_numpy(np.array(Image.open(source.file(i)).convert('RGB'))).permute(2, 0, 1)
        assert torch.equal(pixels, center_crop(rgb, 64, how=how))


def test_open_clips_model_as_it_is(theirs, images):
    "Not as a `MemoryCLIP`: in a comparison of models."
    model, _, transform = open_clip.create_model_and_transforms(f'local-dir:{theirs}')
    found = LoadedModel(model, transform=transform, tokenize=open_clip.get_tokenizer(f'local-dir:{theirs}'))
    seen = loader_pixels(_open_with_data(found, images, 'valid').loader)
    for f, x in zip(sorted(images.glob('*.png')), seen): assert torch.equal(x, transform(Image.open(f)))


PALETTE = Image.new('P', (8, 8), 1)
PALETTE.putpalette([0, 0, 0, 127, 108, 43])
GIF = saved(PALETTE, 'GIF', transparency=1)


@pytest.mark.parametrize('image', [saved(Image.new('RGBA', (8, 8), (127, 108, 43, 0))), saved(PALETTE, transparency=1),
                                   saved(PALETTE, transparency=b'\xff\x80'), GIF,
                                   saved(Image.new('RGBA', (8, 8), (127, 108, 43, 0)), 'WEBP', lossless=True,
                                         exact=True),
                                   saved(Image.new('RGBA', (8, 8), (127, 108, 43, 0)), 'TIFF'),
                                   saved(Image.new('RGB', (8, 8), (127, 108, 43)), transparency=(127, 108, 43))])
def test_formats(image, recwarn):
    seen = _read_pixels(image, alpha=True)
    assert seen[..., :3].tolist() == np.asarray(Image.open(io.BytesIO(image)).convert('RGBA'))[..., :3].tolist()
    assert seen[0, 0, :3].tolist() == [127, 108, 43] and not recwarn.list


def test_opaque_images_are_equal_on_both_ways():
    for image in (Image.new('RGBA', (8, 8), (9, 8, 7, 255)), Image.new('L', (8, 8), 9),
                  Image.new('I;16', (8, 8), 257*9), Image.new('CMYK', (8, 8), (9, 8, 7, 6))):
        data = saved(image, 'TIFF')
        pixels = _read_pixels(data)
        assert np.array_equal(pixels, _read_pixels(data, alpha=True)) and pixels.shape == (8, 8, 3)

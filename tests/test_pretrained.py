"""Existing models, at full size and on the command line. Nothing is downloaded: open_clip builds random weights."""
import json
import numpy as np
import open_clip
import pytest
import shutil
import subprocess
import sys
import timm
import torch
import torch.nn.functional as F
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.data.sources import open_source
from memory_vlm.data.transforms import Preprocessing, center_crop
from memory_vlm.evaluation.models import memory_clip_eval_model
from memory_vlm.evaluation.validation import encode
from memory_vlm.hub.onnx import _model_facts
from memory_vlm.hub.open_clip import save_open_clip
from memory_vlm.learner import make_dls
from memory_vlm.models.pretrained import with_pretrained
from memory_vlm.models.pretrained_config import clip_config, preprocessing_kwargs
from memory_vlm.search import open_index
from memory_vlm.training.run_dir import _make_valid_dl
from memory_vlm.widgets.base import ImageSet
from omegaconf import OmegaConf
from pathlib import Path
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ViT-B-16', 'ViT-B-32-quickgelu', 'ViT-B-16-SigLIP', 'vit_medium_patch16_gap_256',
                                  'ViT-M-16-alt'])
def test_features_of_the_original(name, tmp_path):
    torch.manual_seed(0)
    theirs = open_clip.create_model(name).eval()
    torch.save(theirs.state_dict(), tmp_path/'weights.pt')
    ours = MemoryCLIP.from_pretrained(f'open_clip:{name}/{tmp_path}/weights.pt')
    images, ids = torch.randn(2, 3, ours.cfg.image_size, ours.cfg.image_size), torch.randint(1,
            ours.cfg.text.vocab_size, (2, ours.cfg.text.max_len))
    with torch.inference_mode():
        torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(ids), theirs.encode_text(ids), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    ours.add_memory('registers')
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel()
                                                            for p in theirs.parameters()) + 4 * ours.cfg.embed_dim


@pytest.mark.slow
@pytest.mark.parametrize('name', ['vit_base_patch16_clip_224', 'vit_small_patch14_dinov2'])
def test_timm_towers(name, tmp_path):
    torch.manual_seed(0)
    classes = 512 if '_clip_' in name else 0
    theirs = timm.create_model(name, num_classes=classes).eval()
    save_file(theirs.state_dict(), tmp_path/'weights.safetensors')
    ours = MemoryCLIP.from_pretrained(f'timm:{name}/{tmp_path}/weights.safetensors')
    images = torch.randn(1, 3, ours.cfg.image_size, ours.cfg.image_size)
    with torch.inference_mode():
        torch.testing.assert_close(ours.encode_image(images), theirs(images), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_every_open_clip_model_opens_or_is_refused():
    opened = set()
    for name in open_clip.list_models():
        try: clip_config(name, open_clip.get_model_config(name), {})
        except UserError as e: assert f'{name} cannot be opened: ' in str(e)
        else: opened.add(name)
    assert len(opened) >= 70
    families = ('ViT-B-16', 'ViT-B-32-quickgelu', 'ViT-SO400M-14-SigLIP2', 'ViT-bigG-14-CLIPA', 'ViT-H-14-worldwide',
                'MobileCLIP2-L-14')
    assert opened.issuperset(families) and not opened & {'RN50', 'coca_ViT-L-14', 'EVA02-B-16', 'ViTamin-B',
                                                         'convnext_base', 'PE-Core-B-16'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A small CLIP as open_clip's `push_to_hub` writes it."
    folder = tmp_path_factory.mktemp('small')
    cfg = dict(embed_dim=32, quick_gelu=True,
               vision_cfg=dict(image_size=64, layers=3, width=64, head_width=32, patch_size=16),
               text_cfg=dict(context_length=32, width=32, heads=2, layers=2))
    (folder/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg={})))
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**cfg).state_dict(), folder/'open_clip_model.safetensors')
    return folder


MODES = [('shortest', 'bicubic', 0), ('shortest', 'bilinear', 0), ('longest', 'bicubic', 0),
         ('longest', 'bilinear', 200), ('squash', 'bicubic', 0), ('squash', 'bilinear', 0)]


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Wide and tall images with captions."
    folder = tmp_path_factory.mktemp('photos')
    for i, size in enumerate([(400, 100), (100, 400), (150, 140), (64, 64), (30, 50), (90, 260)]):
        pixels = np.random.default_rng(i).integers(256, size=(6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder/f'{i}.png')
        (folder/f'{i}.txt').write_text(f'caption {i}')
    return folder


@pytest.fixture(scope='module', params=MODES, ids=lambda m: '-'.join(map(str, m)))
def folder_of_mode(request, folder, tmp_path_factory):
    "The same model with other settings of preprocessing."
    copy = tmp_path_factory.mktemp('mode')/'model'
    shutil.copytree(folder, copy)
    cfg = json.loads((copy/'open_clip_config.json').read_text())
    cfg['preprocess_cfg'] = dict(zip(('resize_mode', 'interpolation', 'fill_color'), request.param))
    (copy/'open_clip_config.json').write_text(json.dumps(cfg))
    return copy, Preprocessing(*request.param, 'drop_after_resize')


def theirs_features(folder, photos):
    "Return open_clip's features of all images in the order of their names, by its own transform."
    model, _, transform = open_clip.create_model_and_transforms(f'local-dir:{folder}')
    images = torch.stack([transform(Image.open(f)) for f in sorted(photos.glob('*.png'))])
    with torch.no_grad(): return model.eval().encode_image(images, normalize=True)


def assert_same_features(ours, theirs): # Pillow rounds between rows and columns
    assert F.cosine_similarity(ours.float(), theirs).min() > 0.9999


def test_preprocessing_belongs_to_the_model(folder_of_mode, photos, tmp_path):
    folder, how = folder_of_mode
    expected = theirs_features(folder, photos)
    model = MemoryCLIP.from_pretrained(folder)
    assert Preprocessing.of(model.cfg) == how
    source = open_source(photos, 'valid')

    def features(model): return encode(model, memory_clip_eval_model(model).make_batches(source, 4))[0]
    assert_same_features(features(model), expected) # evaluation
    index = open_index(model, photos, tmp_path/'index.safetensors')
    assert_same_features(torch.as_tensor(index.features), expected) # search
    widget = torch.stack([ImageSet(source, model)[i] for i in range(len(source))])
    with torch.no_grad(): assert_same_features(model.encode_image(widget, normalize=True), expected)
    model.save_pretrained(tmp_path/'saved')
    assert Preprocessing.of(MemoryCLIP.from_pretrained(tmp_path/'saved').cfg) == how
    shown = f'resize_mode={how.resize_mode}' in (tmp_path/'saved/README.md').read_text()
    assert shown == (how != Preprocessing(transparency='drop_after_resize'))
    for memory in (None, 'registers', 'learnable_memory'): # export
        with_memory = MemoryCLIP.from_pretrained(folder, memory=memory)
        save_open_clip(with_memory, tmp_path/f'{memory}')
        written = json.loads((tmp_path/f'{memory}/open_clip_config.json').read_text())['preprocess_cfg']
        assert Preprocessing(**{k: written[k] for k in vars(how)}) == how
        assert_same_features(features(with_memory), theirs_features(tmp_path/f'{memory}', photos))
    assert _model_facts(model)['image']['resize_mode'] == how.resize_mode


def test_runs_resize_as_their_model(folder_of_mode, photos, tmp_path):
    folder, how = folder_of_mode
    data = [f'training.data.{k}_path={photos}' for k in ('train', 'val')]
    words = ['model=base', f'model.pretrained={folder}', *data, 'training.data.val_fraction=0.5',
             'training.batch_size=2', 'training.data.num_workers=0', 'training.data.augmentation=none']
    cfg = with_pretrained(compose(words))
    dls = make_dls(cfg, torch.device('cpu'))
    for dl in (dls.train, dls.valid, dls.valid.new(batch_size=1)): # all images, not augmented
        for images, _, index in dl:
            for image, i in zip(images, index.tolist()):
                pixels = torch.from_numpy(dl.source.pixels(i).copy()).permute(2, 0, 1)
                assert torch.equal(image, center_crop(pixels, 64, how=how))
    strip = torch.linspace(0, 255, 400).round().to(torch.uint8).expand(3, 100, 400)
    crop = make_dls(with_pretrained(compose(words[:-1])), torch.device('cpu')).train.dataset.augment
    seen = crop(strip, 64, np.random.default_rng(0))[0, 32]
    # both ends of a panorama are seen, or its center
    assert (seen.max() - seen.min() > 200) == (how.resize_mode != 'shortest')
    loader = _make_valid_dl(cfg)
    assert loader.dataset.augment.keywords == dict(how=how) # of a finished run


def test_preprocessing_cannot_be_changed(folder):
    with pytest.raises(UserError, match='resize_mode=squash disagrees with .*, which has the default'):
        with_pretrained(compose(['model=base', f'model.pretrained={folder}', 'model.vit_kwargs.resize_mode=squash']))
    with pytest.raises(UserError, match="resize_mode='squish' is unknown .did you mean 'squash'"):
        MemoryCLIP.from_config(compose(['model=tiny', 'model.vit_kwargs.resize_mode=squish']).model)


@pytest.mark.slow
def test_settings_of_every_weight_of_open_clip():
    seen = []
    for name, tag in open_clip.list_pretrained():
        trained = open_clip.get_pretrained_cfg(name, tag)
        found = Preprocessing.of(dict(vit_kwargs=preprocessing_kwargs(trained)))
        assert (found.resize_mode, found.interpolation) == (trained.get('resize_mode') or 'shortest',
                                                            trained.get('interpolation') or 'bicubic')
        seen.append(found)
    assert sum(p.resize_mode == 'squash' for p in seen) >= 48 and sum(p.interpolation == 'bilinear' for p in seen) >= 21


def train(*args):
    "Run train.py to its end."
    data = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.batch_size=16']
    return subprocess.run([sys.executable, 'train.py', '--config-name=quickstart', 'model=base', *data, *args],
                          cwd=ROOT, capture_output=True, encoding='utf-8')


def test_memory_on_a_frozen_model(folder, tmp_path):
    run = train(f'model.pretrained={folder}', 'model/memory=registers', 'training.freeze=all-memory',
                'training.memory_lr_scale=10', 'training.max_steps=3', f'training.run_dir={tmp_path}/run')
    assert run.returncode == 0, run.stderr
    cfg = OmegaConf.load(tmp_path/'run/config.yaml')
    assert (cfg.model.embed_dim, cfg.model.depth, cfg.model.memory.dim, cfg.model.vit_kwargs.act_layer) == (64, 3, 64,
            'quick_gelu')
    checkpoint = next(p for p in (tmp_path/'run/checkpoints').iterdir() if (p/'model.safetensors').exists())
    before = MemoryCLIP.from_pretrained(folder, memory='registers').state_dict()
    after = MemoryCLIP.from_pretrained(checkpoint).state_dict()
    assert {n for n in before if not before[n].equal(after[n])} == {'visual.memory.tokens'}


MISTAKES = {
    'model.depth=5': 'model.depth=5 disagrees with',
    'training.freeze=all-memry': "did you mean 'memory'",
    'training.freeze=all': 'leaves nothing to train',
    'model.image_size=60': 'model.image_size=60 is not a multiple of model.patch_size=16',
    'model.pretrained=open_clip:ViT-B16/openai': "did you mean 'ViT-B-16'",
}


@pytest.mark.slow
@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_are_one_line(mistake, folder, tmp_path):
    pretrained = [] if 'pretrained' in mistake else [f'model.pretrained={folder}']
    run = train(*pretrained, mistake, f'training.run_dir={tmp_path}/run')
    lines = [line for line in run.stderr.splitlines() if MISTAKES[mistake] in line]
    assert run.returncode == 2 and len(lines) == 1 and 'Traceback' not in run.stderr, run.stderr
    assert not (tmp_path/'run').exists()

"""Images of another size than the model was made for: every measure reads the patches of these images."""
import pytest
import timm
import torch
from memory_vlm.ablation import ablate
from memory_vlm.core import UserError
from memory_vlm.evaluation.localization import _patch_states, dense_probe, lost_corloc
from memory_vlm.interp.attribution import attribute
from memory_vlm.interp.caption_maps import caption_map
from memory_vlm.interp.intervene import intervene
from memory_vlm.interp.test_time_registers import (
    norm_maps,
    patch_norms,
    register_neurons,
    test_time_register as with_register,
)
from memory_vlm.models.towers import find_tower
from memory_vlm.report import memory_report
from memory_vlm.vision import tiny_vit

SIZE = 96, 128 # pixels; the models are made for 64 x 64
POSITIONS = [dict(memory_position=p) for p in ('prepend', 'append')]
POSITIONS += [dict(memory_position=p, memory_update='static') for p in ('kv', 'kv_protected', 'kv_head')]
TIMM = {'registers': dict(reg_tokens=4), 'plain': {}, 'mean of the patches': dict(class_token=False, global_pool='avg')}


def pair(make):
    "The same weights for images of any size, and made for `SIZE`."
    torch.manual_seed(0)
    any_size, fixed = make(dynamic_img_size=True), make()
    for name, p in any_size.named_parameters():
        if 'tokens' in name or name == 'reg_token': torch.nn.init.normal_(p)
    fixed.load_state_dict(any_size.state_dict())
    fixed.set_input_size(SIZE)
    return any_size.eval(), fixed.eval()


def timm_pair(name):
    how = dict(img_size=64, embed_dim=48, depth=3, num_heads=3, num_classes=0) | TIMM[name]
    return pair(lambda **kw: timm.create_model('vit_tiny_patch16_224', **how, **kw))


def memory_pair(kw): return pair(lambda **size: tiny_vit(num_memory_tokens=4, **kw, **size))


def pictures(): return torch.randn(6, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def same_report(models):
    x, labels = pictures(), torch.arange(6) % 2
    masks = torch.zeros(6, *SIZE, dtype=torch.int64)
    masks[:, :40], masks[::2, :, :60] = 1, 2
    found, wanted = (memory_report(m, [(x[:4], labels[:4]), (x[4:], labels[4:])], masks=masks) for m in models)
    assert [r.name for r in found.rows] == [r.name for r in wanted.rows]
    values = [torch.tensor([r.value for r in report.rows]) for report in (found, wanted)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize('name', TIMM)
def test_report_of_a_timm_model(name): same_report(timm_pair(name))


@pytest.mark.parametrize('kw', POSITIONS, ids=lambda kw: kw['memory_position'])
def test_report_of_a_model_with_memory(kw): same_report(memory_pair(kw))


@pytest.mark.parametrize('name', TIMM)
def test_norms_and_neurons(name):
    any_size, fixed = timm_pair(name)
    x, outputs = pictures(), []
    start = find_tower(fixed).layout.patches.start
    for block in fixed.blocks:
        block.register_forward_hook(lambda b, args, out: outputs.append(out[:, start:].norm(dim=-1)))
    with torch.no_grad(): fixed(x)
    torch.testing.assert_close(patch_norms(any_size, x), torch.stack(outputs, 1)) # all 48 patches
    neurons = register_neurons(any_size, x, num=4, threshold=1.)
    assert [n[:2] for n in neurons] == [n[:2] for n in register_neurons(fixed, x, num=4, threshold=1.)]
    torch.testing.assert_close(norm_maps(any_size, x, neurons), norm_maps(fixed, x, neurons))


@pytest.mark.parametrize('name', TIMM)
def test_objects(name):
    any_size, fixed = timm_pair(name)
    x, boxes = pictures(), [torch.tensor([[8., 8., 100., 80.]])] * 6
    for a, b in zip(_patch_states(any_size, x), _patch_states(fixed, x)): torch.testing.assert_close(a, b)
    assert lost_corloc(any_size, x, boxes).equals(lost_corloc(fixed, x, boxes))
    masks = torch.zeros(6, *SIZE, dtype=torch.int64)
    masks[:, :40] = 1
    assert dense_probe(any_size, x, masks).equals(dense_probe(fixed, x, masks))


@pytest.mark.parametrize('kind', ['mask', 'zero', 'mean', 'shuffle'])
@pytest.mark.parametrize('name', TIMM)
def test_every_patch_is_ablated(name, kind):
    x, labels = pictures(), torch.arange(6) % 2
    def score(features, index): return features[:, 0] / 2 + .5
    found, wanted = (ablate(m, [(x, labels)], part='patches', kinds=[kind], score=score) for m in timm_pair(name))
    assert found.changes.equals(wanted.changes) and found.changes.abs().to_numpy().max() > 1e-6


@pytest.mark.parametrize('size', [(32, 32), SIZE])
def test_without_patches_all_images_are_alike(size):
    vit, _ = timm_pair('plain')
    with torch.no_grad(), intervene(vit, 'zero', part='patches'): out = vit(torch.randn(2, 3, *size))
    torch.testing.assert_close(out[0], out[1])


@pytest.mark.parametrize('name', ['plain', 'mean of the patches'])
@pytest.mark.parametrize('method', ['exact', 'gradient'])
def test_caption_maps(name, method):
    any_size, fixed = timm_pair(name)
    x, text = pictures()[:1], torch.randn(1, 48, generator=torch.Generator().manual_seed(2))
    found, wanted = (caption_map(m, x, text[0], method=method) for m in (any_size, fixed))
    assert found.maps.shape[-2:] == (6, 8)
    torch.testing.assert_close(found.maps, wanted.maps)
    torch.testing.assert_close(attribute(any_size, x, text).patches, attribute(fixed, x, text).patches)


def test_a_register_of_a_model_with_memory_needs_its_size():
    any_size, _ = memory_pair(POSITIONS[0])
    with with_register(any_size, [(0, 1)]):
        any_size(torch.randn(1, 3, 64, 64))
        with pytest.raises(UserError, match='96 x 128 pixels; a test-time register of a MemoryViT needs 64 x 64'):
            any_size(pictures())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_images_follow_the_dtype_of_the_model(dtype):
    "Images of a loader are float32."
    vit, x = timm_pair('registers')[1], pictures()
    half, labels = vit.to(dtype), torch.arange(6) % 2
    assert len(memory_report(half, [(x, labels)]).rows) > 20 and patch_norms(half, x).isfinite().all()
    assert ablate(half, [(x, labels)], part='cls', kinds=['zero']).num_images == 6
    assert _patch_states(half, x)[0].dtype == torch.float32

"A learned bias on memory's keys works in everything that looks into attention, trains, and is exported."
import open_clip
import pytest
import torch
import torch.nn.functional as F
from contextlib import ExitStack
from memory_vlm.attention import capture
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.hub.open_clip import save_open_clip
from memory_vlm.interp.attribution import attribute
from memory_vlm.interp.intervene import intervene
from memory_vlm.models.attention_hooks import explicit_attention
from memory_vlm.training.resets import MemoryResetCallback, Usage
from types import SimpleNamespace

SMALL = ['model=tiny', 'model.depth=2', 'model.text.depth=1', 'model.text.max_len=16',
         'model.memory.num_memory_tokens=4']
POSITIONS = {p: ['model.memory.memory_position=' + p] + ['model.memory.memory_update=static'] * (p.startswith('kv'))
             for p in ('prepend', 'append', 'kv', 'kv_protected', 'kv_head')}


def model(position='prepend', start=-2., words=()):
    torch.manual_seed(0)
    words = [*SMALL, *POSITIONS[position], f'model.memory.key_bias={start}', *words]
    found = MemoryCLIP.from_config(compose(words).model)
    for memory in found.visual.memory_tokens(): torch.nn.init.normal_(memory.tokens)
    return found.eval()


@pytest.mark.parametrize('position', POSITIONS)
def test_captured_attention_has_the_bias(position):
    m, images = model(position), torch.rand(2, 3, 64, 64)
    block, layout = m.visual.blocks[0], m.visual.layout
    before = m.encode_image(images)
    x = {}
    handle = block.norm1.register_forward_hook(lambda module, args, out: x.setdefault(args[0].shape[1], out))
    with torch.no_grad(), capture(m, values=True, dtype=torch.float32) as maps: after = m.encode_image(images)
    handle.remove()
    assert torch.equal(before, after)
    if position == 'kv_protected': return # its new CLS is normalized apart from the other tokens
    with torch.no_grad():
        q, k, v = block.attn.project(x[layout.num_tokens])
        if block.memory is not None:
            more, values = block.memory_keys()
            k = torch.cat([k, more.expand(2, -1, -1, -1)], 2)
            v = torch.cat([v, values.expand(2, -1, -1, -1)], 2)
        logits = q.double() @ k.double().mT * q.shape[-1] ** -.5
        logits[..., layout.memory] += block.attn.key_bias.bias.double()[:, None, None]
        expected = logits.softmax(-1)
    assert torch.allclose(maps.from_cls[:, 0].double(), expected[:, :, 0], atol=1e-5)
    assert torch.allclose(maps.to_memory[:, 0].double(), expected[..., layout.memory], atol=1e-5)
    without = explicit_attention(q, k)
    assert (without[..., layout.memory].sum(-1) > 2 * expected[..., layout.memory].sum(-1)).all()


@pytest.mark.parametrize('position', POSITIONS)
def test_contributions_sum_to_the_score(position):
    m, images = model(position), torch.rand(3, 3, 64, 64)
    found = attribute(m, images, F.normalize(torch.randn(3, m.visual.embed_dim), dim=-1))
    assert torch.allclose(found.total(), found.score, atol=1e-5)


@pytest.mark.parametrize('position', POSITIONS)
def test_masked_memory_is_a_closed_bias(position):
    m, images = model(position), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        with intervene(m, 'mask'): masked = m.encode_image(images)
        for block in m.visual.blocks: block.attn.key_bias.bias.fill_(-90.)
        assert torch.allclose(masked, m.encode_image(images), atol=1e-5)


def test_bias_trains_with_memory_and_is_exported(tmp_path):
    m = model()
    names = {n for n, _ in m.named_parameters() if 'key_bias' in n}
    assert len(names) == 2 and {m.parameter_layers()[n] for n in names} == {'memory'}
    save_open_clip(m, tmp_path)
    theirs, _ = open_clip.create_model_from_pretrained(f'local-dir:{tmp_path}')
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(theirs.encode_image(images), m.encode_image(images), atol=1e-6)


@pytest.mark.parametrize('start', [-6., -4., 0.])
def test_new_tokens_are_not_dead_because_of_the_bias(start):
    m = model(start=start)
    callback = MemoryResetCallback(m, every=1)
    callback.learn = SimpleNamespace(steps_of=lambda epochs: 10, n_epoch=1, train_iter=1)
    callback.num_sampled = 10
    usage = Usage(m.visual)
    with torch.no_grad(), ExitStack() as hooks:
        usage.record(hooks)
        m.encode_image(torch.rand(4, 3, 64, 64))
    assert not callback.to_reset(usage.mean()).any()
    assert callback.to_reset(usage.mean() / 100).all()

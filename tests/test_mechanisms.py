"Jumbo token, redrawn tokens and output gate: in capture, report, ablation, explorer, and wherever a block runs twice."
import pytest
import torch
from contextlib import contextmanager
from copy import deepcopy
from memory_vlm.ablation import ablate
from memory_vlm.attention import capture
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.data.loaders import make_loader
from memory_vlm.data.sources import open_source
from memory_vlm.interp.attribution import attribute
from memory_vlm.report import memory_report
from memory_vlm.vision import tiny_vit
from memory_vlm.widgets import AttentionExplorer
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer

WORDS = {'jumbo': ['model/memory=jumbo'], 'redrawn': ['model/memory=random_registers'],
         'gate': ['model/memory=registers', 'model.vit_kwargs.attn_gate=elementwise'],
         'gate alone': ['model/memory=off', 'model.vit_kwargs.attn_gate=headwise'],
         'gate, kv': ['model/memory=learnable_memory', 'model.vit_kwargs.attn_gate=headwise']}
each = pytest.mark.parametrize('name', WORDS)


def clip_of(name):
    torch.manual_seed(0)
    model = MemoryCLIP.from_config(compose(['model=tiny', 'model.depth=3', 'model.text.depth=1', *WORDS[name]]).model)
    for p in model.visual.parameters(): p.data += 0.05 * torch.randn_like(p) # also gates
    return model.eval()


@pytest.fixture(scope='module')
def valid(): return make_loader(open_source('scenes:tiny', 'valid'), image_size=64, batch_size=8, train=False)


@contextmanager
def block_inputs(vit):
    found = []
    hooks = [b.register_forward_pre_hook(lambda b, args: found.append(args[0])) for b in vit.blocks]
    yield found
    for h in hooks: h.remove()


@each
@torch.no_grad()
def test_captured_attention_is_explicit_attention(name):
    vit, images = clip_of(name).visual.double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    plain = vit(images)
    with block_inputs(vit) as inputs, capture(vit, full=True) as maps: seen = vit(images)
    torch.testing.assert_close(seen, plain, rtol=0, atol=1e-9)
    for layer, (block, x) in enumerate(zip(vit.blocks, inputs)):
        q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 4, 32)).permute(2, 0, 3, 1, 4)
        if block.memory is not None: k = torch.cat([k, block.memory_keys()[0].expand(2, -1, -1, -1)], 2)
        expected = (q @ k.mT / 32 ** .5).softmax(-1)
        torch.testing.assert_close(maps.full[:, layer].double(), expected, rtol=1e-3, atol=1e-6) # in half precision


@pytest.mark.slow
@each
def test_report_ablation_and_explorer(name, valid):
    model = clip_of(name)
    assert len(memory_report(model, valid, num_images=16).frame()) > 5
    part = dict(part='cls') if name == 'gate alone' else {}
    assert ablate(model, valid, num_images=16, **part).num_images == 16
    explorer = AttentionExplorer(model, valid)
    assert explorer.count and len(explorer.models) == 1 and not explorer.problem_shown


@pytest.mark.parametrize('position', ['prepend', 'append', 'kv', 'kv_protected', 'kv_head'])
def test_redrawn_tokens_of_a_recomputed_block(position):
    update = 'attention' if position in ('prepend', 'append') else 'static'
    images, grads = torch.randn(2, 3, 64, 64), []
    vit = tiny_vit(num_memory_tokens=4, memory_init='redrawn', memory_update=update, memory_position=position)
    for checkpointing in (False, True):
        copy = deepcopy(vit)
        copy.set_grad_checkpointing(checkpointing)
        copy.blocks[-1].register_forward_hook(lambda *a: None) # the last block computes all tokens in both
        torch.manual_seed(2)
        copy(images).square().sum().backward()
        grads.append({n: p.grad for n, p in copy.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for n, g in grads[0].items(): assert torch.equal(g, grads[1][n]), n


def test_redrawn_tokens_of_a_batch_in_parts():
    model = clip_of('redrawn').train()
    images, ids = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8), torch.randint(1, 49000, (4, 12))
    def gradients(encode):
        model.zero_grad()
        torch.manual_seed(3)
        image, text = encode()
        (image @ text.T).square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    def plain(): return map(torch.cat, zip(*(model.encode(i, t) for i, t in zip(images.chunk(2), ids.chunk(2)))))
    model.num_parts = 2
    expected, found = gradients(plain), gradients(lambda: model.encode_in_parts(images, ids))
    for n, g in expected.items(): torch.testing.assert_close(found[n], g)


def test_evaluation_does_not_depend_on_the_generator():
    model, images = clip_of('redrawn'), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        first = model.encode_image(images)
        torch.rand(5)
        assert torch.equal(model.encode_image(images), first)
        model.train()
        assert not torch.equal(model.encode_image(images), model.encode_image(images))


@each
def test_saved_and_opened_again(name, tmp_path):
    model, images = clip_of(name), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    model.save_pretrained(tmp_path)
    again = MemoryCLIP.from_pretrained(tmp_path)
    with torch.no_grad(): assert torch.equal(again.encode_image(images), model.encode_image(images))


def test_a_pretrained_model_gets_no_gate(tmp_path):
    cfg = compose(['model=tiny', 'model.depth=1', 'model.text.depth=1', 'model/memory=off'])
    model = MemoryCLIP.from_config(cfg.model)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match='attn_gate=headwise disagrees with .*, which has the default; leave it out'):
        MemoryCLIP.from_pretrained(tmp_path, vit_kwargs=dict(attn_gate='headwise'))
    grown = MemoryCLIP.from_pretrained(tmp_path, memory='jumbo')
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert grown.encode_image(images).isfinite().all()


@pytest.mark.parametrize('pool', ['token', 'avg'])
def test_attribution_through_gated_attention_of_timm(pool):
    torch.manual_seed(0)
    tower = VisionTransformer(img_size=64, embed_dim=64, depth=3, num_heads=2, num_classes=16, global_pool=pool).eval()
    for block in tower.blocks: block.attn = Attention(64, 2, qkv_bias=True, gated=True)
    for p in tower.parameters(): p.data += 0.1 * torch.randn_like(p)
    images, texts = torch.randn(3, 3, 64, 64), torch.randn(3, 16)
    found = attribute(tower, images, texts)
    with torch.no_grad(): score = torch.cosine_similarity(tower(images), texts)
    torch.testing.assert_close(found.score, score, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.total(), score, rtol=0, atol=1e-4)

"""timm's interface of ViTs with memory: what timm's own tests check of its models, for every position of memory."""
import open_clip
import pytest
import timm
import torch
from copy import deepcopy
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.hub.open_clip import save_open_clip
from memory_vlm.tokens import POSITIONS
from memory_vlm.vision import MemoryViT
from timm.layers import get_notrace_functions, get_notrace_modules, resample_abs_pos_embed
from timm.models import group_parameters
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor, get_graph_node_names

SIZE = dict(img_size=64, embed_dim=48, depth=4, num_heads=3, num_memory_tokens=4)
MODELS = {p: dict(memory_position=p) | ({} if p in ('prepend', 'append') else dict(memory_update='static'))
          for p in POSITIONS}
MODELS |= {u: dict(memory_update=u) for u in ('gated', 'cross_attention', 'static', 'ema', 'jumbo')}
MODELS |= {'none': dict(num_memory_tokens=0), 'gated-append': dict(memory_update='gated', memory_position='append'),
           'average': dict(memory_position='append', global_pool='avg'),
           'map': dict(global_pool='map', class_token=False), 'redrawn': dict(memory_init='redrawn'),
           'output-gate': dict(attn_gate='elementwise'),
           'plain-output-gate': dict(num_memory_tokens=0, attn_gate='headwise'), 'narrow': dict(memory_dim=16),
           'scaled': dict(init_values=0.1, qk_norm=True, no_embed_class=True, pre_norm=True)}
TRACE = dict(leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions(), param_shapes_constant=True)
QUICK = ('prepend', 'append', 'kv_protected') # the others run with the slow tests
every_model = pytest.mark.parametrize('name', [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow)
                                               for n in MODELS])
every_position = pytest.mark.parametrize('name', POSITIONS)


def create(name, **kwargs):
    torch.manual_seed(0)
    vit = timm.create_model('memory_vit_tiny_patch16_224', **SIZE | dict(num_classes=10) | MODELS[name] | kwargs)
    generator = torch.Generator().manual_seed(0)
    for memory in getattr(vit, 'model', vit).memory_tokens(): torch.nn.init.normal_(memory.tokens, generator=generator)
    return vit.eval()


def images(*size): return torch.randn(2, 3, *size or (64, 64), generator=torch.Generator().manual_seed(0))


def num_prefix(name):
    "Tokens that are not patches."
    layout = create(name).layout
    return layout.num_tokens - layout.num_patches


@every_model
def test_forward_and_gradient_checkpointing(name):
    vit, x = create(name), images()
    out = vit(x)
    assert out.shape == (2, 10) and out.isfinite().all()
    vit.set_grad_checkpointing()
    torch.testing.assert_close(vit(x), out)


@every_model
@pytest.mark.parametrize('checkpointing', [False, True])
def test_every_parameter_has_a_gradient(name, checkpointing):
    vit = create(name).train()
    vit.set_grad_checkpointing(checkpointing)
    vit(images()).mean().backward()
    without = {n for n, p in vit.named_parameters() if p.grad is None}
    original = {'head.weight', 'head.bias'} if name == 'kv_protected' else set() # the new CLS has its own head
    assert without == original | ({'memory.tokens'} if name in ('ema', 'redrawn') else set())


@every_model
def test_features_and_classifiers(name):
    vit, x = create(name), images()
    features = vit.forward_features(x)
    pooled = vit.forward_head(features, pre_logits=True)
    assert features.shape == (2, 16 + num_prefix(name), 48) and pooled.shape == (2, vit.head_hidden_size)
    torch.testing.assert_close(vit.forward_head(features), vit(x))
    vit.reset_classifier(7)
    assert vit(x).shape == (2, 7) and vit.num_classes == 7
    vit.reset_classifier(0)
    torch.testing.assert_close(vit(x), pooled)
    state = create(name).state_dict()
    assert {f"{vit.default_cfg[k]}.weight" for k in ('classifier', 'first_conv')} <= state.keys()


@every_model
def test_without_pooling_the_patches_follow_the_prefix_tokens(name):
    vit, x = create(name), images()
    patches = vit.get_intermediate_layers(x, 1, norm=True)[0]
    pooled = vit.forward_head(vit.forward_features(x), pre_logits=True)
    vit.reset_classifier(0, '')
    out = vit(x)
    made = create(name, num_classes=0, global_pool='') if name != 'map' else vit
    assert made(x).shape == out.shape == (2, vit.num_prefix_tokens + 16, 48)
    if name not in ('average', 'map'): torch.testing.assert_close(out[:, vit.num_prefix_tokens:], patches)
    if vit.layout.num_cls and name != 'average': torch.testing.assert_close(out[:, 0], pooled)


@every_model
@pytest.mark.parametrize('norm', [False, True])
def test_intermediates_are_the_patches_of_each_block(name, norm):
    vit, x, seen = create(name), images(), []
    for block in vit.blocks:
        block.register_forward_hook(lambda block, args, out: seen.append(vit.norm(out) if norm else out))
    final, maps = vit.forward_intermediates(x, norm=norm, return_prefix_tokens=False)
    torch.testing.assert_close(final, vit.forward_features(x))
    assert len(maps) == 4
    for out, raw in zip(maps, seen):
        assert out.shape == (2, 48, 4, 4) and out.is_contiguous()
        torch.testing.assert_close(out.flatten(2).mT, raw[:, vit.layout.patches])
    some = vit.forward_intermediates(x, [1, 2], norm=norm, return_prefix_tokens=True, output_fmt='NLC',
                                     intermediates_only=True, stop_early=True)
    for out, raw in zip(some, seen[1:3]):
        patches, prefix = out if num_prefix(name) else (out, None)
        torch.testing.assert_close(patches, raw[:, vit.layout.patches])
        if prefix is None: continue
        assert prefix.shape == (2, num_prefix(name), 48)
        if vit.layout.num_cls: torch.testing.assert_close(prefix[:, :1], raw[:, vit.layout.readout])
        if vit.layout.in_sequence: torch.testing.assert_close(prefix[:, vit.layout.num_cls:], raw[:, vit.layout.memory])
    named = vit.forward_intermediates(x, 2, output_dict=True, return_prefix_tokens=True)
    assert named.keys() == {'image_intermediates', 'image_features'} | ({'image_intermediates_prefix'}
                                                                        if num_prefix(name) else set())
    for reshape, shape in ((False, (2, 16, 48)), (True, (2, 48, 4, 4))):
        assert [m.shape for m in vit.get_intermediate_layers(x, 2, reshape=reshape)] == [shape] * 2
    vit.set_grad_checkpointing()
    torch.testing.assert_close(vit.forward_intermediates(x, norm=norm)[0], final)


@every_model
def test_intermediates_without_memory_are_those_of_timm(name):
    vit = create(name)
    if vit.layout.num_memory and name != 'kv_protected' or 'gate' in name: return
    plain = timm.create_model('vit_tiny_patch16_224', **{k: v for k, v in SIZE.items() if k != 'num_memory_tokens'},
                              num_classes=10).eval()
    plain.load_state_dict(vit.state_dict(), strict=False)
    for ours, theirs in zip(vit.forward_intermediates(images())[1], plain.forward_intermediates(images())[1]):
        assert torch.equal(ours, theirs)


@every_model
@pytest.mark.parametrize('how', [{}, dict(feature_cls='getter', out_indices=(0, 2)), dict(out_indices=2)])
def test_features_only(name, how):
    extractor, x = create(name, features_only=True, **how), images()
    maps = extractor(x)
    assert len(maps) == len(extractor.feature_info.channels()) and {m.shape for m in maps} == {(2, 48, 4, 4)}
    whole = create(name).get_intermediate_layers(x, extractor.out_indices, reshape=True)
    for ours, theirs in zip(maps, whole): torch.testing.assert_close(ours, theirs)
    generic = timm.create_model('memory_vit', features_only=True, **SIZE | MODELS[name])
    assert [m.shape for m in generic(x)] == [(2, 48, 4, 4)] * 3


@every_model
def test_pruned_layers(name):
    vit, x = create(name), images()
    maps = vit.get_intermediate_layers(x, [0, 2])
    assert vit.prune_intermediate_layers([0, 2], prune_norm=True, prune_head=True) == [0, 2] and len(vit.blocks) == 3
    for ours, theirs in zip(vit.get_intermediate_layers(x, [0, 2]), maps): assert torch.equal(ours, theirs)
    assert vit(x).shape == (2, vit.num_prefix_tokens + 16, 48)
    if name != 'ema': return
    start = vit.memory.tokens.clone()
    vit.train()(x)
    assert not torch.equal(start, vit.memory.tokens) # still updated, now by the last block that is left


@every_model
def test_images_of_any_size(name):
    vit = create(name, dynamic_img_size=True)
    fixed = create(name)
    fixed.load_state_dict(vit.state_dict())
    torch.testing.assert_close(vit(images()), fixed(images()))
    for size in ((96, 32), (32, 32), (128, 96)):
        fixed = create(name)
        fixed.load_state_dict(vit.state_dict())
        fixed.set_input_size(size)
        x, grid = images(*size), (size[0] // 16, size[1] // 16)
        assert fixed.layout.grid == grid
        torch.testing.assert_close(vit(x), fixed(x))
        for ours, theirs in zip(vit.forward_intermediates(x)[1], fixed.forward_intermediates(x)[1]):
            torch.testing.assert_close(ours, theirs)
        assert vit.get_intermediate_layers(x, 1, reshape=True)[0].shape == (2, 48, *grid)
        vit.train()(x).mean().backward()
        vit.eval()
    padded = create(name, dynamic_img_size=True, dynamic_img_pad=True)
    assert padded.forward_intermediates(images(70, 40))[1][0].shape == (2, 48, 5, 3)


@every_position
def test_positions_are_resampled_as_in_timm(name):
    vit = create(name, dynamic_img_size=True)
    old = vit.pos_embed.detach()
    vit.set_input_size((96, 96))
    torch.testing.assert_close(vit.pos_embed.detach(), resample_abs_pos_embed(old, (6, 6), (4, 4), num_prefix_tokens=1))


@every_model
def test_patch_sizes(name):
    vit = create(name)
    vit.set_input_size(img_size=(64, 32), patch_size=(8, 8))
    assert vit.layout.grid == (8, 4) and vit.get_intermediate_layers(images(64, 32), 1, reshape=True)[0].shape == (2,
            48, 8, 4)
    assert vit(images(64, 32)).shape == (2, 10)


def traced(vit, train=False):
    "Trace a model with torch.fx, as timm's tests do."
    train_nodes, eval_nodes = get_graph_node_names(vit, tracer_kwargs=TRACE)
    last = train_nodes[-1:]
    if train:
        nodes = list(reversed(NodePathTracer(**TRACE).trace(vit).nodes))
        names = [n.name for n in nodes]
        last = [train_nodes[-names.index(n.name)] for n in nodes[0]._input_nodes]
    return create_feature_extractor(vit, train_return_nodes=last, eval_return_nodes=eval_nodes[-1:],
                                    tracer_kwargs=TRACE)


@every_model
def test_fx_forward(name):
    vit, x = create(name), images()
    with torch.inference_mode():
        out = vit(x)
        assert torch.equal(torch.cat(tuple(traced(vit)(x).values())), out)
        assert torch.equal(torch.fx.symbolic_trace(vit)(x), out)


@every_model
def test_fx_backward(name):
    vit, x = create(name).train(), images()
    twin = deepcopy(vit)
    extract = traced(vit, train=True)
    torch.manual_seed(1) # `redrawn` tokens
    out = torch.cat(tuple(extract(x).values()))
    out.mean().backward()
    torch.manual_seed(1)
    expected = twin(x)
    expected.mean().backward()
    torch.testing.assert_close(out, expected)
    for (n, p), (_, q) in zip(vit.named_parameters(), twin.named_parameters()):
        assert (p.grad is None) == (q.grad is None), n
        if q.grad is not None: torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


@every_model
def test_fx_node_of_each_block(name):
    vit, x = create(name), images()
    for train in (False, True):
        found = create_feature_extractor(vit.train(train), {f'blocks.{i}': f'{i}' for i in range(4)},
                                         tracer_kwargs=TRACE).train(train)(x)
        assert [v.shape for v in found.values()] == [(2, vit.layout.num_tokens, 48)] * 4


@every_model
def test_parameter_groups(name):
    vit = create(name)
    names = {n for n, _ in vit.named_parameters()}
    assert set().union(*map(set, group_parameters(vit, vit.group_matcher()).values())) == names
    assert {n for n in names if n.endswith('memory.tokens')} <= vit.no_weight_decay()


def test_registers_of_timm_and_memory_do_not_mix():
    with pytest.raises(UserError, match='reg_tokens=2'): MemoryViT(reg_tokens=2, num_memory_tokens=4)
    assert MemoryViT(reg_tokens=2, num_memory_tokens=0, depth=1, embed_dim=48, num_heads=3).num_prefix_tokens == 3


@every_position
def test_patch_tokens_of_an_exported_folder(name, tmp_path):
    update = 'attention' if name in ('prepend', 'append') else 'static'
    words = [f'model.memory.memory_position={name}', f'model.memory.memory_update={update}',
             'model.memory.num_memory_tokens=3']
    ours = MemoryCLIP.from_config(compose(['model=tiny', *words]).model).eval()
    save_open_clip(ours, tmp_path/'model')
    theirs = open_clip.create_model(f'local-dir:{tmp_path}/model').eval()
    x = images()
    with torch.no_grad():
        for fmt, shape in dict(NCHW=(2, 128, *ours.visual.layout.grid),
                               NLC=(2, ours.visual.layout.num_patches, 128)).items():
            found = theirs.forward_intermediates(x, image_output_fmt=fmt, image_output_extra_tokens=True,
                                                 normalize=False)
            assert {m.shape for m in found['image_intermediates']} == {shape}
        torch.testing.assert_close(found['image_features'], ours.encode_image(x))
        expected = ours.visual.forward_intermediates(x, output_fmt='NLC', return_prefix_tokens=True)[1]
        for a, b, (c, d) in zip(found['image_intermediates'], found['image_intermediates_prefix'], expected):
            assert torch.equal(a, c) and torch.equal(b, d)

"""Everything that scores images against captions scores all vectors of `readout=maxsim` and `caption`."""
import pytest
import torch
import torch.nn.functional as F
from memory_vlm.ablation import ablate
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.data.loaders import make_loader
from memory_vlm.data.sources import open_source
from memory_vlm.evaluation.classification import Prompts, class_features, class_ranks
from memory_vlm.evaluation.validation import encode, evaluate
from memory_vlm.interp.attribution import attribute
from memory_vlm.learner import make_learner
from unittest.mock import patch

SMALL = ['model=tiny', 'model.depth=2', 'model.text.depth=1', 'model.memory.num_memory_tokens=3']
DATA = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.batch_size=16',
        'training.data.num_workers=0', 'training.logging.wandb=false', 'training.logging.tensorboard=false']


@pytest.fixture(scope='module', params=['maxsim', 'caption'])
def model(request):
    torch.manual_seed(0)
    model = MemoryCLIP.from_config(compose([*SMALL, f'model.memory.readout={request.param}']).model).eval()
    for p in model.visual.memory.parameters(): p.data.normal_() # the vectors of an image differ
    if model.query is not None: model.query.data += 0.3 * torch.randn_like(model.query)
    return model


@pytest.fixture(scope='module')
def valid(): return make_loader(open_source('scenes:tiny', 'valid'), image_size=64, batch_size=8, train=False)


def by_hand(model, vectors, texts):
    "Score a pair at a time."
    def one(v, t):
        if model.cfg.memory.readout == 'maxsim': return max(v @ t)
        return F.normalize((v @ (t @ model.query) / 0.1).softmax(0) @ v, dim=0) @ t
    return torch.stack([torch.stack([one(v, t) for t in texts]) for v in vectors]).detach()


@torch.no_grad()
def encoded(model, dl):
    vectors, texts, owner = [], [], []
    for images, ids, index in dl:
        vectors.append(model.encode_image(images, vectors=True))
        texts.append(model.encode_text(ids, normalize=True))
        owner.append(index)
    return map(torch.cat, (vectors, texts, owner))


def test_retrieval_and_loss(model, valid):
    vectors, texts, owner = encoded(model, valid)
    scores, found = by_hand(model, vectors, texts), evaluate(model, valid)
    assert owner.tolist() == list(range(len(owner))) # one caption per image
    for way, s in (('i2t', scores), ('t2i', scores.T)):
        for k in (1, 5, 10):
            rank = (s >= s.diagonal()[:, None]).sum(1) - 1
            assert found[f'{way}/R@{k}'] == pytest.approx((rank < k).double().mean().item())
    z, label = scores * model.logit_scale.exp(), torch.arange(len(scores))
    loss = (F.cross_entropy(z, label) + F.cross_entropy(z.T, label)).item() / 2
    assert found['val_loss'] == pytest.approx(loss, abs=1e-5)


def test_zero_shot(model, valid):
    images = encode(model, valid)[0]
    classes = class_features(model, model.tokenize, Prompts(['red apple', 'dog face', 'key', 'car']))
    labels = torch.arange(len(images)) % 4
    texts = classes if classes.dim() == 2 else classes[:, 0]
    scores = by_hand(model, images, texts)
    rank = (scores >= scores.gather(1, labels[:, None])).sum(1) - 1
    assert class_ranks(images, classes, labels).tolist() == rank.tolist()


def test_usual_feature_is_the_normalized_mean(model):
    images = torch.randn(2, 3, 64, 64)
    mean = F.normalize(model.encode_image(images, vectors=True).mean(1), dim=-1)
    for normalize in (False, True): torch.testing.assert_close(model.encode_image(images, normalize), mean)


def test_ablation_compares_all_vectors(model, valid):
    found = ablate(model, valid, kinds=['zero'], leave_one_out=True)
    metrics = evaluate(model, valid)
    assert found.scores['i2t/R@1'] == pytest.approx(metrics['i2t/R@1'])
    assert len(found.changes) == 4
    assert 'only hides it from other tokens' in ablate(model, valid, kinds=['mask', 'zero']).notes['mask']


def test_refusals_are_one_line(model):
    images, ids = torch.randn(2, 3, 64, 64), model.tokenize(['a dog', 'a red apple'])
    with (patch.object(model.visual, 'readout', 'mean'),
          pytest.raises(UserError, match='readout=mean') as e): attribute(model, images, ids)
    assert '\n' not in str(e.value)


def test_saved_and_opened_again(model, tmp_path):
    model.save_pretrained(tmp_path)
    again, images = MemoryCLIP.from_pretrained(tmp_path), torch.randn(2, 3, 64, 64)
    for a, b in zip(model.encode(images, model.tokenize(['a', 'b'])), again.encode(images, model.tokenize(['a', 'b']))):
        assert torch.equal(a, b)


@pytest.mark.parametrize('readout', ['mean', 'concat', 'maxsim', 'caption'])
@pytest.mark.parametrize('loss_type', ['clip', 'siglip'])
def test_gradients_of_a_batch_in_parts(readout, loss_type):
    images, ids = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8), torch.randint(1, 49000, (6, 12))
    found = []
    for parts in (1, 3):
        learn = make_learner(compose([*SMALL, *DATA, f'model.memory.readout={readout}',
                                      f'model.contrastive.loss_type={loss_type}']), device=torch.device('cpu'))
        learn.model.train().num_parts = parts
        learn.loss_func(learn.model(images, ids), torch.arange(6)).backward()
        found.append({n: p.grad for n, p in learn.model.named_parameters()})
    for name, g in found[0].items():
        assert g is not None and torch.allclose(g, found[1][name], atol=1e-5 * max(g.abs().max().item(), 1e-3)), name


def test_added_to_a_model_without_memory():
    torch.manual_seed(0)
    plain = MemoryCLIP.from_config(compose(['model=tiny', 'model/memory=off']).model).eval()
    before = {n: p.clone() for n, p in plain.state_dict().items()}
    plain.add_memory('caption_mixed')
    assert plain.encode_image(torch.randn(2, 3, 64, 64), vectors=True).shape == (2, 8, 128)
    assert all(torch.equal(p, plain.state_dict()[n]) for n, p in before.items())
    assert plain.state_dict().keys() - before.keys() == {'query', 'visual.memory.tokens'}


def test_images_are_shown_with_the_nearest_captions(model):
    learn = make_learner(compose([*SMALL, *DATA, f'model.memory.readout={model.cfg.memory.readout}']),
                         device=torch.device('cpu'))
    learn.show_results()

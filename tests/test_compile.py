"""Models that are compiled, or compute their blocks twice, train as others do."""
import pytest
import torch
from memory_vlm.attention import capture
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from memory_vlm.models.attention_hooks import EAGER

SMALL = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.batch_size=8',
         'training.max_steps=2', 'model.embed_dim=32', 'model.depth=1', 'model.text.embed_dim=16', 'model.text.depth=1',
         'training.ema_decay=0.5']


def losses(*words):
    learn = make_learner(compose([*SMALL, *words], config_name='quickstart'))
    with learn.no_bar(), learn.no_logging(): learn.fit_cosine(1)
    return torch.stack(learn.recorder.losses).tolist(), learn


def test_ema_bank_updates_once_per_step_under_gradient_checkpointing():
    plain, learn = losses('model/memory=ema_bank')
    twice, other = losses('model/memory=ema_bank', 'training.grad_checkpointing=true')
    assert twice == pytest.approx(plain, rel=1e-5)
    torch.testing.assert_close(other.model.visual.memory.tokens, learn.model.visual.memory.tokens)


@pytest.mark.slow
def test_compiled_fit_has_same_losses():
    plain, _ = losses()
    compiled, learn = losses('training.compile=true')
    assert learn.model.visual.blocks[0]._compiled_call_impl is not None
    assert compiled == pytest.approx(plain, rel=1e-4)
    images = learn.dls.valid.one_batch()[0]
    with torch.no_grad(), capture(learn.model.eval()) as maps: seen = learn.model.encode_image(images)
    torch.testing.assert_close(seen, learn.model.encode_image(images))
    assert torch.isfinite(maps.heatmap(layer=0, token=0)).all()


def compiled_frames(run):
    "Count the frames that torch compiles during `run`."
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run()
    return torch._dynamo.utils.counters['frames']['ok']


@pytest.mark.slow
def test_compiled_training_stays_compiled_beside_a_learner_that_measures_usage():
    resets = 'model.memory.mem_reinit_steps=2' # blocks run uncompiled while usage is measured
    frames = compiled_frames(lambda: losses('training.compile=true'))
    assert frames > 0
    assert compiled_frames(lambda: losses(resets)) == 0
    assert compiled_frames(lambda: losses('training.compile=true')) == frames
    losses('training.compile=true', resets)
    assert compiled_frames(lambda: losses('training.compile=true')) == frames
    assert EAGER.users == 0

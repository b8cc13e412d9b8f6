"""Each of fastai's callbacks and learner methods works with our learner, or is refused in one sentence."""
import numpy as np
import pytest
import torch
from fastai.callback import channelslast, data, fp16, hook, mixup, preds, progress, rnn, schedule, tracker, training
from fastai.callback.core import Callback, FetchPredsCallback
from fastai.distributed import DistributedTrainer, ParallelTrainer
from fastai.interpret import Interpretation
from fastai.learner import AvgMetric, CastToTensor, SkipToEpoch, ValueMetric
from fastai.losses import LabelSmoothingCrossEntropy
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.learner import MemoryLearner, make_learner
from memory_vlm.run import fit
from memory_vlm.training.callbacks import callback_table
from memory_vlm.training.progress import LineProgressCallback

SMALL = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.batch_size=16',
         'training.max_steps=3', 'training.precision=fp32', 'model.embed_dim=32', 'model.depth=1',
         'model.text.embed_dim=16', 'model.text.depth=1', 'training.scheduler_kwargs.warmup_epochs=0']


@pytest.fixture(scope='module')
def dls(): return make_learner(compose(SMALL, config_name='quickstart')).dls


@pytest.fixture
def small(dls, tmp_path):
    "Make a learner whose files go to a temporary folder."
    def make(*words):
        learn = make_learner(compose([*SMALL, *words], config_name='quickstart'), dls=dls)
        learn.path = tmp_path
        learn.remove_cb(progress.ProgressCallback)
        learn.logger = lambda *_: None
        return learn
    return make


def losses(learn): return torch.stack(learn.recorder.losses).tolist()


WORKS = {
    'ActivationStats': lambda tmp: hook.ActivationStats(with_hist=True),
    'BnFreeze': lambda tmp: training.BnFreeze(),
    'CastToTensor': lambda tmp: CastToTensor(),
    'ChannelsLast': lambda tmp: channelslast.ChannelsLast(),
    'CollectDataCallback': lambda tmp: data.CollectDataCallback(),
    'CSVLogger': lambda tmp: progress.CSVLogger(),
    'EarlyStoppingCallback': lambda tmp: tracker.EarlyStoppingCallback(),
    'FetchPredsCallback': lambda tmp: FetchPredsCallback(),
    'GradientClip': lambda tmp: training.GradientClip(0.1),
    'MixedPrecision': lambda tmp: fp16.MixedPrecision('bf16'),
    'ParamScheduler': lambda tmp: schedule.ParamScheduler(dict(lr=schedule.SchedCos(1e-3, 1e-4))),
    'ReduceLROnPlateau': lambda tmp: tracker.ReduceLROnPlateau(),
    'SaveModelCallback': lambda tmp: tracker.SaveModelCallback(monitor='i2t/R@1'),
    'ShortEpochCallback': lambda tmp: training.ShortEpochCallback(0.2),
    'SkipToEpoch': lambda tmp: SkipToEpoch(0),
    'TerminateOnNaNCallback': lambda tmp: tracker.TerminateOnNaNCallback(),
    'TensorBoardCallback': lambda tmp: tensorboard()(tmp/'board', trace_model=False, log_preds=False),
}
REFUSED = {
    'CutMix': (lambda: mixup.CutMix(), 'training.data.augmentation'),
    'DistributedTrainer': (lambda: DistributedTrainer(), 'torchrun'),
    'GradientAccumulation': (lambda: training.GradientAccumulation(32), 'training.accumulate_grad_batches'),
    'MCDropoutCallback': (lambda: preds.MCDropoutCallback(), 'never has dropout'),
    'MixUp': (lambda: mixup.MixUp(), 'training.data.augmentation'),
    'ModelResetter': (lambda: rnn.ModelResetter(), 'not recurrent'),
    'ModelToHalf': (lambda: fp16.ModelToHalf(), 'learn.to_fp16()'),
    'NonNativeMixedPrecision': (lambda: fp16.NonNativeMixedPrecision(), 'learn.to_fp16()'),
    'ParallelTrainer': (lambda: ParallelTrainer([0]), 'torchrun'),
    'RNNCallback': (lambda: rnn.RNNCallback(), 'not recurrent'),
    'RNNRegularizer': (lambda: rnn.RNNRegularizer(), 'not recurrent'),
    'TensorBoardCallback with predictions': (lambda: tensorboard()(), 'log_preds=False'),
    'WandbCallback': (lambda: wandb()(), 'training.logging.wandb'),
    'unknown monitor': (lambda: tracker.SaveModelCallback('t2i/R@2'), "did you mean 't2i/R@1'?"),
    'misspelt loss': (lambda: tracker.EarlyStoppingCallback('val_los'), "did you mean 'val_loss'?"),
    'worst recall': (lambda: tracker.SaveModelCallback('t2i/R@1', comp=np.less), 'leave comp out'),
    'worst loss': (lambda: tracker.ReduceLROnPlateau(comp=np.greater), 'leave comp out'),
}


def wandb():
    pytest.importorskip('wandb')
    from fastai.callback.wandb import WandbCallback
    return WandbCallback


def tensorboard():
    from fastai.callback.tensorboard import TensorBoardCallback
    return TensorBoardCallback


@pytest.mark.parametrize('name', WORKS)
def test_callback_of_fastai_works(name, small, tmp_path):
    learn, plain = small(), small()
    for each, cbs in ((learn, [WORKS[name](tmp_path)]), (plain, [])): each.fit(1, 1e-3, cbs=cbs)
    assert learn.evaluation['step'] == learn.train_iter > 0
    if name in ('GradientClip', 'MixedPrecision', 'ParamScheduler', 'ShortEpochCallback'):
        assert [p.sum() for p in learn.model.parameters()] != [p.sum() for p in plain.model.parameters()]
    elif name == 'ChannelsLast': assert losses(learn) == pytest.approx(losses(plain), rel=1e-5) # other kernels
    else: assert losses(learn) == losses(plain)
    learn.fit(1, 1e-3) # a second fit without it works too


@pytest.mark.parametrize('name', REFUSED)
def test_callback_of_fastai_is_refused_in_one_sentence(name, small):
    make, alternative = REFUSED[name]
    learn = small()
    for use in (learn.add_cb, lambda cb: learn.fit(1, cbs=cb)):
        with pytest.raises(UserError) as e: use(make())
        assert alternative in str(e.value) and '\n' not in str(e.value)
    assert learn.validate()[0] > 0 # nothing is left behind


def test_show_graph_needs_and_uses_the_progress_bar(small):
    learn = small()
    learn.add_cb(progress.ProgressCallback)
    learn.fit(1, cbs=progress.ShowGraphCallback())
    assert learn.evaluation['step'] == 3


def test_early_stopping_stops_and_a_plateau_lowers_the_rate_of_all_layers(small):
    never = dict(min_delta=100.)
    learn = small('training.max_steps=null')
    learn.fit(4, 0., cbs=tracker.EarlyStoppingCallback(patience=1, **never))
    assert len(learn.recorder.values) == 2
    learn.fit(3, 1e-3, cbs=tracker.ReduceLROnPlateau(patience=1, factor=10., **never))
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx([1e-5] * 4)
    with pytest.raises(UserError, match='use learn.fit'): learn.fit_cosine(1, cbs=tracker.ReduceLROnPlateau())


def test_early_stopped_fit_leaves_the_averaged_weights_that_were_evaluated(small):
    learn = small('training.max_steps=null', 'training.ema_decay=0.9')
    learn.fit(3, 1e-3, cbs=tracker.EarlyStoppingCallback(patience=1, min_delta=100.))
    assert len(learn.recorder.values) == 2
    assert learn.evaluate(learn.dls.train.new(train=False))['val_loss'] > 0
    assert learn.validate()[0] == pytest.approx(learn.evaluations[-2]['val_loss'], abs=1e-6)
    with pytest.raises(UserError, match='training.checkpoint'): learn.add_cb(tracker.SaveModelCallback())


def test_save_model_callback_restores_the_best_epoch(small):
    learn = small('training.max_steps=null')
    learn.fit(2, 0.5, cbs=tracker.SaveModelCallback('t2i/R@1', with_opt=True))
    best = max(e['t2i/R@1'] for e in learn.evaluations)
    assert learn.evaluate()['t2i/R@1'] == pytest.approx(best)


def test_precision_methods_set_training_and_evaluation(small):
    learn = small()
    for method, precision in (('to_fp16', 'fp16'), ('to_bf16', 'bf16'), ('to_fp32', 'fp32')):
        assert getattr(learn, method)() is learn and learn.precision == precision
        assert hasattr(learn, 'mixed_precision') == (precision != 'fp32')
    learn.to_bf16().fit(1, 1e-3)
    assert next(learn.model.parameters()).dtype == torch.float32
    with pytest.raises(UserError, match='init_scale'): learn.to_fp16(init_scale=4.)
    learn.to_fp32().to_channelslast(use_amp=False)
    learn.fit(1, 1e-3)


def test_get_preds_returns_features_of_all_images_and_captions(small):
    learn = small()
    (images, texts), rows = learn.get_preds()
    assert len(images) == len(learn.dls.valid.source) and len(texts) == len(rows)
    assert images.norm(dim=1).tolist() == pytest.approx([1] * len(images), abs=1e-5)
    ranked = (texts @ images.T).argmax(1)
    assert (ranked == rows).float().mean().item() == pytest.approx(learn.evaluate()['t2i/R@1'])
    (train, _), _ = learn.get_preds(0)
    assert len(train) == len(learn.dls.train.source) # those that fill no batch, too
    for asked in ('with_loss', 'with_input', 'with_decoded'):
        with pytest.raises(UserError, match=asked): learn.get_preds(**{asked: True})
    with pytest.raises(UserError, match='with_loss'): Interpretation.from_learner(learn).top_losses(1)


def test_predict_export_and_other_losses_name_the_alternative(small):
    learn = small()
    with pytest.raises(UserError, match='encode_image'): learn.predict('x.jpg')
    with pytest.raises(UserError, match='save_pretrained'): learn.export()
    learn.loss_func = LabelSmoothingCrossEntropy()
    with pytest.raises(UserError, match='model.contrastive.loss_type'): learn.fit(1)


def test_metrics_are_names_of_metrics_of_evaluate(small):
    learn = small()
    learn.metrics = ['t2i/R@5', ValueMetric(lambda: 7, 'seven')]
    learn.fit(1, 1e-3)
    assert learn.recorder.values[-1][2:4] == [learn.evaluation['t2i/R@5'], 7]
    with pytest.raises(UserError, match="did you mean 't2i/R@1'?"): learn.metrics = ['t2i/R@6']
    def accuracy(pred, targ): return 1.
    with pytest.raises(UserError, match='accuracy'): learn.metrics = [accuracy]
    with pytest.raises(UserError, match='accuracy'): learn.metrics = AvgMetric(accuracy)


def test_save_and_load_bring_back_weights_and_optimizer(small):
    learn, other = small(), small('training.seed=1')
    learn.fit(1, 1e-3)
    learn.save('kept')
    other.load('kept', with_opt=True)
    assert all(torch.equal(p, q) for p, q in zip(learn.model.parameters(), other.model.parameters()))
    for each in (learn, other): each.fit(1, 1e-3)
    assert losses(learn) == losses(other)


def test_validate_and_summary_leave_the_learner_as_it_was(small):
    learn = small('model.memory.mem_reinit_steps=2')
    learn.fit(1, 1e-3)
    history = list(learn.memory_reset.window_steps)
    before = learn.validate()
    text = learn.summary()
    assert 'Total params' in text and 'MemoryCLIP' in text
    assert learn.memory_reset.window_steps == history and learn.validate() == before


@pytest.mark.parametrize('method', ['fine_tune', 'fit_one_cycle', 'fit_flat_cos', 'fit_sgdr'])
def test_schedules_of_fastai_train_every_layer(method, small):
    learn = small()
    start = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    getattr(learn, method)(*((1, 1) if method == 'fit_sgdr' else (1,)))
    same = [n for n, p in learn.model.named_parameters() if torch.equal(p, start[n])]
    assert not same


def test_freeze_trains_the_heads_only_and_memory_gets_its_layer_rate(small):
    learn = small()
    learn.freeze()
    start = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    learn.fit(1, 1e-2)
    changed = {n for n, p in learn.model.named_parameters() if not torch.equal(p, start[n])}
    assert changed == {'visual.head.weight', 'text.text_projection', 'logit_scale'}
    learn.freeze_to(-2)
    learn.fit(1, slice(1e-5, 1e-2))
    assert not torch.equal(learn.model.visual.memory.tokens, start['visual.memory.tokens'])
    rates = {n: gs[0]['lr'] for n, gs in learn.opt.layers.items()}
    assert rates == pytest.approx(dict(trunk=1e-5, text=1e-4, memory=1e-3, heads=1e-2))


def test_table_of_callbacks_lists_exactly_those_of_a_run(tmp_path, monkeypatch):
    seen, original = [], MemoryLearner.fit
    def spy(learn, *args, cbs=None, **kwargs):
        class Look(Callback):
            order = 1000
            def before_fit(self): seen.append([c for c in self.learn.cbs.sorted('order') if c is not self])
        return original(learn, *args, cbs=[*cbs, Look()], **kwargs)
    monkeypatch.setattr(MemoryLearner, 'fit', spy)
    words = [*SMALL, 'training.ema_decay=0.9', 'training.precision=bf16', 'model.memory.mem_reinit_steps=2',
             f'training.run_dir={tmp_path}/run', 'training.preflight=false', 'training.logging.tensorboard=true']
    fit(compose(words, config_name='quickstart'))
    (tmp_path/'run'/'DONE').unlink()
    fit(compose([*words, 'training.resume=auto'], config_name='quickstart'))
    table = callback_table()
    assert table.order.is_monotonic_increasing and table.reason.str.len().min() > 10
    assert table.order.tolist() == sorted(table.order)
    found = {type(c).__name__: c.order for cbs in seen for c in cbs}
    expected = dict(zip(table.callback, table.order))
    for name in ('DistributedCallback', '_ShardCallback'): # only with several ranks: tests/test_ranks.py
        assert expected.pop(name) == -10
    expected.pop('ProgressCallback' if LineProgressCallback.is_needed() else 'LineProgressCallback')
    assert found == expected
    assert [c.order for c in seen[-1]] == sorted(c.order for c in seen[-1])

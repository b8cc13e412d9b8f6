"""A training step asks for values of tensors, which on a GPU is a wait, as seldom as stated here."""
import torch
from collections import Counter
from fastai.callback.core import Callback
from memory_vlm.config import compose
from memory_vlm.learner import make_learner
from unittest.mock import patch

WORDS = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'model.embed_dim=32',
         'model.depth=2', 'model.text.embed_dim=32', 'model.text.depth=1', 'training.batch_size=8',
         'training.max_steps=6', 'training.precision=fp32', 'training.optimizer=adamw'] # Muon counts steps on the CPU
READS = ('item', '__float__', '__bool__', '__int__', 'tolist', 'numpy', 'cpu', 'nonzero')


class CountReads(Callback):
    "Count which methods read values of a tensor in a step, from the forward pass to fastai's records."
    order = 65 # after the schedule (60), whose tensors are on the CPU, and after the records (50)
    def before_fit(self): self.steps = []
    def before_batch(self):
        self.counts, self.patches = Counter(), []
        for name in READS:
            def counted(t, *args, name=name, read=getattr(torch.Tensor, name), **kwargs):
                self.counts[name] += t.numel() > 0
                return read(t, *args, **kwargs)
            self.patches.append(patch.object(torch.Tensor, name, counted))
            self.patches[-1].start()
    def after_batch(self):
        for p in self.patches: p.stop()
        self.steps.append(dict(self.counts))


def test_a_step_reads_values_once():
    learn, count = make_learner(compose(WORDS, config_name='quickstart')), CountReads()
    with learn.no_bar(), learn.no_logging(): learn.fit_schedule('constant', cbs=count)
    # before the step the loss and the norm of the gradient together, after it the loss, which fastai records
    assert count.steps == [dict(tolist=1, cpu=1)] * 6

"""Every key of the configuration has an effect. One row per key: how it is changed, and what shows the effect."""
import json
import pytest
import torch
import yaml
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from io import StringIO
from memory_vlm.config import compose, schema_fields, validate
from memory_vlm.core import UserError
from omegaconf import OmegaConf
from PIL import Image
from types import SimpleNamespace
from unittest.mock import patch

BASE = ['model=tiny', 'model.image_size=32', 'model.patch_size=16', 'model.embed_dim=32', 'model.depth=2',
        'model.num_heads=2', 'model.text.embed_dim=32', 'model.text.depth=1', 'model.text.num_heads=2',
        'model.text.max_len=16', 'model.memory.num_memory_tokens=3', 'model.memory.mem_reinit_steps=0',
        'training.data.train_path=table.csv', 'training.data.val_path=', 'training.data.val_fraction=0.5',
        'training.data.num_workers=0', 'training.data.prefetch_factor=null', 'training.data.persistent_workers=false',
        'training.data.pin_memory=false', 'training.data.cache_mb=0', 'training.epochs=1', 'training.batch_size=4',
        'training.logging.wandb=false', 'training.logging.tensorboard=false',
        'training.scheduler_kwargs.warmup_epochs=0', 'training.learning_rate=1e-2', 'training.logging.save_minutes=0']
CPU = torch.device('cpu')


@pytest.fixture(scope='module', autouse=True)
def folder(tmp_path_factory):
    "Work in a folder with 24 images, tables of them and class folders."
    work = tmp_path_factory.mktemp('keys')
    with pytest.MonkeyPatch.context() as m:
        m.chdir(work)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        rows = ['image,other_image,text,other_text']
        for place, shift in (('.', 0), ('moved', 90)):
            for i in range(24):
                for name, color in ((f'a{i}.png', (10 * i, 60, shift)), (f'b{i}.png', (60, 10 * i, shift))):
                    path = work/place/name
                    path.parent.mkdir(exist_ok=True)
                    image = Image.new('RGB', (48, 40), color)
                    image.paste((200, 0, 0), (0, 0, 20, 30)) # so that a crop is visible
                    image.save(path)
        rows += [f'a{i}.png,b{i}.png,a red square {i},{i} green circles' for i in range(24)]
        (work/'table.csv').write_text('\n'.join(rows) + '\n')
        (work/'mine.py').write_text('')
        (work/'other.csv').write_text('\n'.join(r.replace('red', 'blue') for r in rows) + '\n')
        for i in range(12):
            for name in ('cat', 'dog'):
                (work/'classes'/name).mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (40, 40), (20 * i, 0, 90)).save(work/'classes'/name/f'{i}.png')
        yield work
        torch.set_num_threads(threads)


def model_of(cfg, seed=0):
    from memory_vlm.clip import make_model
    from memory_vlm.models.pretrained import with_pretrained
    torch.manual_seed(seed)
    return make_model(with_pretrained(cfg).model)


# What shows an effect. Each function takes a configuration and returns what is compared.

def shapes(cfg): return {n: tuple(p.shape) for n, p in model_of(cfg).named_parameters()}


def features(cfg, train=False):
    "Features of fixed images and captions, and the logit scale."
    model = model_of(cfg).train(train)
    images = torch.randint(0, 255, (2, 3, cfg.model.image_size, cfg.model.image_size), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): out = model(images, model.tokenize(['a red square', 'two green circles']))
    return [o.tolist() for o in out]


def features_in_training(cfg): return features(cfg, train=True)


def token_ids(cfg):
    from memory_vlm.data.tokenizer import text_tokenizer
    return text_tokenizer(cfg.model.text)(['A red   SQUARE, and a dog']).tolist()


def small_tokenizer():
    "Save a Hugging Face tokenizer in a folder."
    tokenizers = pytest.importorskip('tokenizers')
    transformers = pytest.importorskip('transformers')
    vocabulary = {w: i for i, w in enumerate(['<pad>', '<s>', '</s>', '<unk>', 'a', 'red', 'square', 'dog'])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='<unk>'))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token='<pad>', unk_token='<unk>',
                                         bos_token='<s>', eos_token='</s>').save_pretrained('words')
    return 'words'


def learner(cfg):
    from memory_vlm.learner import make_learner
    with redirect_stderr(StringIO()): return make_learner(cfg, device=CPU)


def fitted(cfg):
    learn = learner(cfg)
    with learn.no_logging(), learn.no_bar(): learn.fit_schedule(cfg.training.scheduler)
    return learn


def training(cfg):
    "Losses, evaluations and final weights of a short fit."
    learn = fitted(cfg)
    sums = {n: p.detach().double().sum().item() for n, p in learn.model.named_parameters()}
    return torch.stack(learn.recorder.losses).tolist(), [e['step'] for e in learn.evaluations], sums


def resets(cfg):
    "Return which tokens a fit re-initialized, and when."
    return [(e['step'], e['token']) for e in fitted(cfg).memory_reset.history.events()]


def frozen(cfg): return {n for n, p in learner(cfg).model.named_parameters() if not p.requires_grad}
def checkpointing(cfg): return learner(cfg).model.visual.grad_checkpointing
def compiled(cfg): return learner(cfg).model.visual.blocks[0]._compiled_call_impl is not None


def distributed(cfg):
    "Return the callbacks of two ranks; tests/test_fsdp.py shows their effect."
    from memory_vlm.training import fsdp
    with patch.object(fsdp, 'world_size', return_value=2):
        return [type(cb).__name__ for cb in fsdp._distributed_callbacks(cfg)]


def gathered(cfg):
    "The argument that reaches the loss; tests/test_loss_distributed.py shows its effect on two ranks."
    from memory_vlm.learner import make_loss
    seen = []
    def loss(*args, gather_distributed, true_captions): return seen.append(gather_distributed) or torch.zeros(())
    with patch('memory_vlm.learner.LOSSES', dict(clip=loss)):
        make_loss(cfg.model.contrastive)((torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(())), torch.arange(2))
    return seen


def loaders(cfg):
    from memory_vlm.learner import make_dls
    return make_dls(cfg, CPU)


def batch(cfg):
    "First batch for training, and all captions for evaluation."
    dls = loaders(cfg)
    images, ids, _ = dls.train.one_batch()
    return images.tolist(), ids.tolist(), len(dls.valid.source), [ids.tolist() for _, ids, _ in dls.valid]


def true_captions(cfg):
    "Return whether the loss learns which captions are true; nbs/13_loss.ipynb and 20_learner show what follows."
    return len(loaders(cfg).train.one_batch()) == 4


def workers(cfg):
    "Return the arguments of torch's loader. Pinned memory needs a GPU, so a mock stands in."
    with patch('torch.cuda.is_available', return_value=True), redirect_stderr(StringIO()): dl = loaders(cfg).train
    return dict(num_workers=dl.num_workers, prefetch_factor=dl.prefetch_factor, persistent=dl.persistent_workers,
                pin=dl.pin_memory)


def bad_limit(cfg): return loaders(cfg).train.bad.limit


def cache(cfg):
    "Return the size of the cache that the loaders use."
    made = []
    with patch('memory_vlm.learner.make_cache', side_effect=lambda mb: made.append(mb)): loaders(cfg)
    return made


def refused(cfg):
    "Return the message about a configuration that is refused."
    from memory_vlm.learner import CONFIG_CHECKS
    try: validate(cfg, CONFIG_CHECKS)
    except UserError as e: return str(e)


def written(cfg):
    "Checkpoints, event files and steps of the rows that a run writes."
    from memory_vlm.run import run_training
    from pathlib import Path
    from tempfile import TemporaryDirectory
    with TemporaryDirectory() as d, redirect_stdout(StringIO()):
        learn, run = learner(cfg), Path(d)/'run'
        run.mkdir()
        with learn.no_bar(), learn.no_logging(): run_training(learn, run, None, None)
        files = sorted(str(p.relative_to(d)) for p in Path(d).rglob('*') if p.name == 'manifest.json'
                       or p.parent.name == 'tensorboard')
        files = ['events' if 'tensorboard' in f else f for f in files]
        rows = [r.split(',')[0] for r in (run/'metrics.csv').read_text().splitlines()]
    return files, rows


def in_wandb(cfg):
    "Return the arguments of `wandb.init`."
    from memory_vlm.training import logging
    given = []
    fake = SimpleNamespace(init=lambda **kwargs: given.append({k: kwargs[k]
                                                               for k in ('project', 'entity', 'name', 'tags')}),
                                                               Settings=dict)
    with patch.object(logging, 'require', return_value=fake), redirect_stdout(StringIO()): logging.MetricLog('.', cfg)
    return given


def run_folder(cfg):
    "Folder of a new run without its time, and its config.yaml."
    import shutil
    from memory_vlm.training.run_dir import make_run_dir
    with patch('memory_vlm.training.run_dir.time.strftime', return_value='now'): made = make_run_dir(cfg)
    text = (made/'config.yaml').read_text()
    shutil.rmtree(made)
    return str(made), text


def resumed(cfg):
    "The run that a fit resumes, where there is an unfinished one."
    import shutil
    from memory_vlm.training.run_dir import choose_run, make_run_dir
    run = make_run_dir(base_config())
    with redirect_stdout(StringIO()): found = choose_run(cfg)
    shutil.rmtree('runs')
    return found is not None and found.resolve() == run.resolve()


def checked_before(cfg):
    "Whether a fit checks its data first."
    from memory_vlm import run
    class Stop(Exception): pass
    with patch.object(run, 'preflight', return_value=[]) as check, patch.object(run, 'make_run_dir', side_effect=Stop):
        with pytest.raises(Stop), redirect_stderr(StringIO()): run.fit(cfg)
    return check.called


def card(cfg):
    from memory_vlm.models.card import model_card
    from omegaconf import OmegaConf
    return model_card(OmegaConf.to_container(cfg.model, resolve=True),
                      project=OmegaConf.to_container(cfg.project)).content


def report(cfg):
    "Footer of the report."
    from memory_vlm.viz.page import write_report_page
    from pathlib import Path
    Path('metrics.csv').write_text('step,epoch\n', encoding='utf-8')
    return write_report_page(Path('.'), fitted(cfg)).read_text().rpartition('</pre>')[2]


def problem(cfg): return cfg if isinstance(cfg, str) else None # message of the error


def row(value, shows, *base): return value, shows, base


MEMORY_FIT = ['model.memory.mem_reinit_steps=1', 'model.memory.mem_dead_threshold=1']
STEPS = ['training.batch_size=2', 'training.logging.eval_interval=1', 'training.logging.save_interval=1',
         'training.checkpoint.save_top_k=1', 'training.checkpoint.save_last=false']
KEYS = {
    'model.name': row('mine', card),
    'model.pretrained': row('saved', features),
    'model.image_size': row(64, shapes),
    'model.patch_size': row(8, shapes),
    'model.embed_dim': row(64, shapes),
    'model.depth': row(1, shapes),
    'model.num_heads': row(4, features),
    'model.mlp_ratio': row(2, shapes),
    'model.drop_rate': row(.5, features_in_training),
    'model.attn_drop_rate': row(.5, features_in_training),
    'model.patch_drop_rate': row(.5, features_in_training),
    'model.vit_kwargs': row('{act_layer: quick_gelu}', features),
    'model.proj': row('affine', shapes),
    'model.proj_dim': row(8, shapes),
    'model.mean': row('[0.1,0.2,0.3]', features),
    'model.std': row('[0.1,0.2,0.3]', features),
    'model.memory.enabled': row('false', shapes),
    'model.memory.dim': row(16, shapes),
    'model.memory.num_memory_tokens': row(5, shapes),
    'model.memory.memory_init': row('orthogonal', features),
    'model.memory.memory_update': row('gated', shapes),
    'model.memory.memory_position': row('kv', shapes, 'model.memory.memory_update=static'),
    'model.memory.mem_alpha': row(1, features),
    'model.memory.key_bias': row(-2, shapes),
    'model.memory.readout': row('mean', features),
    'model.memory.mem_reinit_steps': row(2, resets, *MEMORY_FIT),
    'model.memory.mem_reset': row('all', resets, *MEMORY_FIT, 'model.memory.mem_dead_threshold=0'),
    'model.memory.mem_dead_threshold': row(0, resets, *MEMORY_FIT),
    'model.text.tokenizer': row('words', token_ids),
    'model.text.tokenizer_kwargs': row('{clean: canonicalize}', token_ids),
    'model.text.vocab_size': row(50000, shapes),
    'model.text.max_len': row(20, shapes),
    'model.text.embed_dim': row(64, shapes),
    'model.text.depth': row(2, shapes),
    'model.text.num_heads': row(4, features),
    'model.text.mlp_ratio': row(2, shapes),
    'model.text.kwargs': row('{act_layer: quick_gelu}', features),
    'model.contrastive.temperature': row(.1, features),
    'model.contrastive.loss_type': row('siglip', shapes),
    'model.contrastive.gather_distributed': row('true', gathered),
    'model.contrastive.false_negatives': row('ignore', true_captions),
    'training.epochs': row(2, training),
    'training.batch_size': row(3, training),
    'training.accumulate_grad_batches': row(2, training),
    'training.accumulate_mode': row('plain', training, 'training.accumulate_grad_batches=2'),
    'training.freeze': row('text', frozen),
    'training.learning_rate': row(.001, training),
    'training.layer_decay': row(.5, training),
    'training.memory_lr_scale': row(.5, training),
    'training.weight_decay': row(.5, training),
    'training.clip_grad': row(.01, training, 'training.optimizer=sgd'),
    'training.optimizer': row('lion', training),
    'training.optimizer_kwargs': row('{betas: [0.5, 0.5]}', training),
    'training.scheduler': row('constant', training),
    'training.scheduler_kwargs': row('{min_lr: .001}', training),
    'training.seed': row(1, training),
    'training.max_steps': row(1, training),
    'training.imports': row('[mine.py]', run_folder),
    'training.run_dir': row('mine', run_folder),
    'training.resume': row('auto', resumed),
    'training.preflight': row('false', checked_before),
    'training.grad_checkpointing': row('true', checkpointing),
    'training.compile': row('true', compiled),
    'training.fsdp': row('true', distributed),
    'training.ema_decay': row(.9, training),
    'training.precision': row('bf16', training),
    'training.data.train_path': row('other.csv', batch),
    'training.data.val_path': row('other.csv', batch),
    'training.data.val_fraction': row(.25, batch),
    'training.data.image_key': row('other_image', batch),
    'training.data.caption_key': row('other_text', batch),
    'training.data.image_dir': row('moved', batch),
    'training.data.templates': row("['the {}']", batch, 'training.data.train_path=classes'),
    'training.data.max_bad_fraction': row(.5, bad_limit),
    'training.data.image_size': row(64, problem),
    'training.data.augmentation': row('none', batch),
    'training.data.num_workers': row(1, workers),
    'training.data.prefetch_factor': row(3, workers, 'training.data.num_workers=1'),
    'training.data.pin_memory': row('true', workers),
    'training.data.persistent_workers': row('true', workers, 'training.data.num_workers=1'),
    'training.data.cache_mb': row(1, cache),
    'training.logging.log_interval': row(2, written, *STEPS),
    'training.logging.eval_interval': row(2, training, 'training.batch_size=2', 'training.logging.eval_interval=1'),
    'training.logging.save_interval': row(2, written, *STEPS, 'training.checkpoint.save_top_k=9'),
    'training.logging.save_minutes': row(.000000001, written, *STEPS, 'training.logging.save_interval=9',
                                         'training.checkpoint.save_top_k=9'),
    'training.logging.project': row('mine', in_wandb, 'training.logging.wandb=true'),
    'training.logging.entity': row('me', in_wandb, 'training.logging.wandb=true'),
    'training.logging.name': row('mine', run_folder),
    'training.logging.wandb': row('true', in_wandb),
    'training.logging.tensorboard': row('true', written),
    'training.checkpoint.save_top_k': row(2, written, *STEPS),
    'training.checkpoint.monitor': row('t2i/R@1', written, *STEPS, 'training.checkpoint.mode=auto'),
    'training.checkpoint.mode': row('max', refused),
    'training.checkpoint.save_last': row('true', written, *STEPS, 'training.checkpoint.save_top_k=0'),
    'training.checkpoint.dirpath': row('../kept', written),
    'training.checkpoint.filename': row('at-{step}', written),
    'project.name': row('mine', report, 'model.memory.enabled=false'),
    'project.description': row('short', run_folder),
    'project.license': row('MIT', card),
    'project.authors': row('[Me]', run_folder),
    'project.citation': row("'@misc{x}'", card),
    'project.tags': row('[mine]', card),
}


def test_every_key_has_a_row():
    assert set(KEYS) == set(schema_fields())


@lru_cache
def base_config(): return compose(BASE)


def configured(*overrides):
    "A configuration with changes, or the message if it has mistakes."
    cfg = base_config().copy()
    for override in overrides:
        key, _, value = override.partition('=')
        value = yaml.safe_load(value)
        if isinstance(value, dict): value = {**OmegaConf.select(cfg, key), **value}
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    try: return validate(cfg)
    except UserError as e: return str(e)


@lru_cache
def shown(shows, *overrides): return json.dumps(shows(configured(*overrides)), default=sorted)


@pytest.mark.parametrize('key', KEYS)
def test_key_has_an_effect(key):
    value, shows, base = KEYS[key]
    if key == 'model.pretrained': model_of(base_config(), seed=1).save_pretrained('saved')
    if key == 'model.text.tokenizer': small_tokenizer()
    assert shown(shows, *base) != shown(shows, *base, f'{key}={value}')


@pytest.mark.parametrize('shows', dict.fromkeys(shows for _, shows, _ in KEYS.values()))
def test_effect_is_reproducible(shows):
    base = next(base for _, s, base in KEYS.values() if s is shows)
    assert shown(shows, *base) == json.dumps(shows(configured(*base)), default=sorted)

"""A model with a tokenizer saved by transformers: trained, saved, opened and exported."""
import json
import open_clip
import pytest
import shutil
import subprocess
import sys
import torch
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.data.scenes import SceneSource
from memory_vlm.data.tokenizer import untokenize
from memory_vlm.evaluation.models import memory_clip_eval_model, open_clip_eval_model
from memory_vlm.evaluation.validation import encode
from memory_vlm.hub.open_clip import save_open_clip
from memory_vlm.learner import make_dls, make_learner
from pathlib import Path
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parent.parent
LENGTH = 48


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    ("A small SigLIP as open_clip's `push_to_hub` writes it: a Unigram vocabulary, padded with its end token to a "
     "fixed length.")
    folder = tmp_path_factory.mktemp('siglip')
    source = SceneSource('train', 'tiny', cache=False)
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words = [c for i in range(len(source)) for c in source.captions(i)]
    raw.train_from_iterator(words,
                            trainers.UnigramTrainer(vocab_size=120, special_tokens=['<unk>', '</s>'],
                                                    unk_token='<unk>'))
    raw.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token='<unk>', pad_token='</s>',
                            eos_token='</s>').save_pretrained(folder)
    vision = dict(image_size=64, timm_model_name='test_vit', timm_model_pretrained=False, timm_pool='avg',
                  timm_proj='none')
    text = dict(context_length=LENGTH, vocab_size=120, hf_tokenizer_name='owner/siglip',
                tokenizer_kwargs=dict(clean='canonicalize'), width=64, heads=2,
                layers=2, no_causal_mask=True, proj_bias=True, pool_type='last', norm_kwargs=dict(eps=1e-6))
    cfg = dict(embed_dim=64, init_logit_bias=-10, custom_text=True, vision_cfg=vision, text_cfg=text)
    (folder/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=cfg,
                                                                preprocess_cfg=dict(mean=[.5]*3, std=[.5]*3))))
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**{k: v for k, v in cfg.items() if k != 'custom_text'})
    save_file(model.state_dict(), folder/'open_clip_model.safetensors')
    return folder


def configured(folder, *words):
    "Return a configuration that trains the small model on scenes."
    return compose([f'model.pretrained={folder}', 'model=base', 'training.data.train_path=scenes:tiny',
                    'training.data.val_path=scenes:tiny',
                    'training.batch_size=16', 'training.max_steps=2', *words], config_name='quickstart')


def test_tokens_equal_those_of_open_clip(folder):
    model, tokenizer = MemoryCLIP.from_pretrained(folder), open_clip.get_tokenizer(f'local-dir:{folder}')
    texts = ['A dog face, left of a red apple!', 'two', 'word ' * 50]
    assert model.tokenize(texts).equal(tokenizer(texts)) and model.tokenize(texts).shape == (3, LENGTH)
    dls = make_dls(make_learner(configured(folder)).cfg)
    images, ids, index = dls.train.one_batch()
    # padded to the full length with the end token
    assert ids.shape == (16, LENGTH) and (ids[:, -1] == 1).all()
    assert untokenize(ids, dls.train.settings['tokenizer']) == [dls.train.source.captions(i)[0] for i in index.tolist()]
    with torch.no_grad(): assert model.encode_text(ids).isfinite().all()


def test_train_save_and_open_again(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path/'original')
    run = subprocess.run([sys.executable, 'train.py', '--config-name=quickstart', 'model=base',
                          f'model.pretrained={copy}', 'model/memory=registers', 'training.data.train_path=scenes:tiny',
                          'training.data.val_path=scenes:tiny', 'training.batch_size=16', 'training.max_steps=2',
                          f'training.run_dir={tmp_path}/run'], cwd=ROOT, capture_output=True, encoding='utf-8')
    assert run.returncode == 0, run.stderr
    # a checkpoint contains its tokenizer
    shutil.rmtree(copy)
    checkpoint = next(p for p in (tmp_path/'run/checkpoints').iterdir() if (p/'model.safetensors').exists())
    model, source = MemoryCLIP.from_pretrained(checkpoint), SceneSource('valid', 'tiny', cache=False)
    assert (model.cfg.memory.num_memory_tokens == 4
            and model.tokenize('two').equal(MemoryCLIP.from_pretrained(folder).tokenize('two')))
    ours = encode(model, memory_clip_eval_model(model).make_batches(source, 8))
    # captions were trained
    assert not ours[1].allclose(encode(MemoryCLIP.from_pretrained(folder),
                                       memory_clip_eval_model(model).make_batches(source, 8))[1])
    # and so does an open_clip folder
    exported = open_clip_eval_model(f'local-dir:{save_open_clip(model, tmp_path/"exported")}')
    torch.testing.assert_close(encode(exported.model, exported.make_batches(source, 8))[1], ours[1], rtol=0, atol=1e-5)


def test_errors(folder):
    with pytest.raises(UserError, match="model.text.tokenizer='.*nowhere' cannot be opened"):
        make_learner(configured(folder, 'model.text.tokenizer=/nowhere'))
    with pytest.raises(UserError, match='vocab_size=49408 is not that|set model.text.vocab_size'):
        make_learner(compose([f'model.text.tokenizer={folder}', 'model.text.vocab_size=9',
                              'training.data.train_path=scenes:tiny',
                              'training.data.val_path=scenes:tiny'], config_name='quickstart'))

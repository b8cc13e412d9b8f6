"Retrieval at the size of COCO's test set: exact, and in a memory that does not depend on the number of queries."
import pytest
import resource
import torch
from memory_vlm.evaluation.retrieval import retrieval_ranks


@pytest.mark.slow
def test_25000_captions_of_5000_images_fit_in_2_gib():
    g = torch.Generator().manual_seed(0)
    owner = torch.arange(5000).repeat_interleave(5)
    images = torch.nn.functional.normalize(torch.randn(5000, 512, generator=g), dim=-1)
    texts = torch.nn.functional.normalize(images[owner] + 1.2 * torch.randn(25_000, 512, generator=g), dim=-1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    i2t, t2i = retrieval_ranks(images, texts, owner)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 2
    for i in range(0, 5000, 100):
        sim = images[i] @ texts.T
        assert i2t[i] == ((sim >= sim[owner == i].max()) & (owner != i)).sum()
    for c in range(0, 25_000, 500):
        sim = images @ texts[c]
        assert t2i[c] == (sim >= sim[owner[c]]).sum() - 1

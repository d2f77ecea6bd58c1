"""Released checkpoints are known by their names, as people keep them in folders, and nothing else is taken for one."""

import pytest

from lumina_jax.layout import crop_sizes
from lumina_jax.released import LARGEST, RELEASES, SMALLEST, UNIT, check_target_size, released_as

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.short)
@pytest.mark.parametrize(
    "form", ["{name}", "{short}", "Alpha-VLLM/{name}", "models--Alpha-VLLM--{name}", "{name}-bf16", "my {name} (copy)"]
)
def test_a_release_is_known_by_its_name(release, form):
    name = form.format(name=release.name, short=release.short)
    for spelled in (name, name.upper(), name.lower().replace("-", "_")):
        assert released_as(["", "checkpoints", spelled]) is release


@pytest.mark.parametrize(
    "name",
    ["", "model", "Lumina-mGPT", "Lumina-mGPT-7B", "Lumina-mGPT-7B-7680", "Lumina-mGPT-2.0", "7B", "768", "my-7B-768"],
)
def test_other_names_are_no_release(name):
    assert (
        released_as([name, "lumina_7b_768", "xLumina-mGPT-7B-768", "Chameleon_7B_mGPT", "Lumina-mGPT-34B-768"]) is None
    )


def test_the_first_name_that_is_one_counts():
    assert released_as(["7B-1024", "Lumina-mGPT-7B-768"]).target_size == 1024


@pytest.mark.parametrize("size", [SMALLEST, 512, 768, 1024, LARGEST])
def test_a_target_size_has_its_square_among_its_sizes(size):
    assert (size, size) in crop_sizes(check_target_size(size))


@pytest.mark.parametrize("size", [0, -512, UNIT, 500, LARGEST + UNIT])
def test_other_target_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"a target size of {size}: it must be a multiple of 32 px from 64 to 2048"):
        check_target_size(size)

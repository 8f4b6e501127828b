"""A site's policy in site.toml: mistakes in it are refused in one sentence before the site starts."""

from pathlib import Path

import pytest

from fedgraft import UserError
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.runs.site_policy import SitePolicy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('methods = ["fedpggp"]', "There is no method 'fedpggp'. Did you mean 'fedpgp'?"),
        ('strategies = ["medain"]', "There is no strategy 'medain'. Did you mean 'median'?"),
        ('backbones = ["abc"]', "'abc' is not a fingerprint of 64 hexadecimal digits"),
        ("max_rounds = 0", "'policy.max_rounds' has the value 0: Input should be greater than or equal to 1"),
        ("smallest_group = -5", "'policy.smallest_group' has the value -5"),
        ("run_seconds = inf", "'policy.run_seconds' has the value inf"),
        ('approve = "yes"', "'policy.approve' has the value 'yes': Input should be a valid boolean"),
        ("min_test_fraction = 0.95", "min_test_fraction = 0.95 exceeds max_test_fraction = 0.9"),
        ("rounds = 5", "'policy.rounds' has the value 5: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_in_the_policy_is_named_with_its_file(text: str, said: str, tmp_path: Path) -> None:
    site = SiteFolder.create(tmp_path / "site", "north")
    (site.path / "site.toml").write_text(f'name = "north"\n[policy]\n{text}\n')
    with pytest.raises(UserError) as raised:
        SiteFolder.open(site.path)
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"{site.path / 'site.toml'}: ")
    assert "\n" not in str(raised.value)


def test_the_place_that_share_counts_had_before_is_named(tmp_path: Path) -> None:
    site = SiteFolder.create(tmp_path / "site", "north")
    (site.path / "site.toml").write_text('name = "north"\nshare_counts = false\n')
    with pytest.raises(UserError, match=r"'share_counts' belongs into the table \[policy\]; move it there\.$"):
        SiteFolder.open(site.path)


def test_a_new_site_has_the_whole_policy_in_its_file(tmp_path: Path) -> None:
    site = SiteFolder.create(tmp_path / "site", "north")
    text = (site.path / "site.toml").read_text()
    for key in SitePolicy.model_fields:
        assert f"\n{key} = " in text
    assert SiteFolder.open(site.path).settings == site.settings

import jax

from pirl_jax.monitor import packages


def test_versions_are_those_installed_and_absent_ones_are_none():
    assert packages.version("jax") == jax.__version__
    assert packages.version("no-such-package-anywhere") is None


def test_every_recorded_package_has_a_line(monkeypatch):
    monkeypatch.setattr(packages, "RECORDED", ("jax", "no-such-package-anywhere"))
    assert packages.recorded() == {"jax": jax.__version__, "no-such-package-anywhere": None}

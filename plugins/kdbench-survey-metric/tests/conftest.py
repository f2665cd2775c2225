"""Settings that the plugin's tests share; they stand alone, as a third party's do."""

from hypothesis import settings

# Time limits would fail on a busy machine and say nothing about the plugin.
settings.register_profile("survey-metric", deadline=None)
settings.load_profile("survey-metric")

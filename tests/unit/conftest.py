from hypothesis import settings

# A deadline is an assertion on wall-clock time, and machines are busy.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

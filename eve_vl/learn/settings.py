"""What `eve learn` was tuned to; LOG.md has the measurements."""

BUNDLED = "builtin:drawings"  # the run that the first pilot starts from
SIZES = (64, 96)  # sides of inputs, in pixels; the first is that of BUNDLED

# names of stages
AS_IT_IS = "bundled, as it is"  # BUNDLED without training
BASE = "bundled"  # the first pilot
# pre-training by masked prediction, for the pilots that do not start from BUNDLED
MASKED = "masked"
FINAL = "final"

NUM_TIMED_STEPS = 6  # of which other work may disturb some
MIN_STEPS = 20  # of a pilot
EPOCHS = 8  # at least, of each final run where there are several
MAX_FINAL_RUNS = 8  # that are planned at once
LR_WITHOUT_BUNDLED = 1e-3  # learning rate of a search that does not start from BUNDLED

PILOT_SHARE = 0.3  # of the time for training: all pilots
FINAL_SHARE = 0.5  # of the time after the first pilot: the final run, at least
MARGIN = 0.97  # share of the remaining time that training may take

MIN_ROWS = 50
MIN_CAPTIONS = 10
MAX_HELD_OUT_ROWS = 500  # for validation and for the test, each
MAX_HELD_OUT_SHARE = 0.1  # of all rows, for each of both
MAX_SHARED_IMAGES = 0.05  # share of the rows of --val or --test whose images other sources have

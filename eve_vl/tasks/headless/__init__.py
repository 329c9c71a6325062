"""An encoder from elsewhere: a start for other runs, and a source of features."""

from eve_vl.tasks.headless.config import HeadlessConfig as HeadlessConfig

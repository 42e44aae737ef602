"""Names of `pipeline.running.output_table`, until every command imports them from there."""

from pipeline.running.output_table import check, finish, holds
from pipeline.running.output_table import requested as wanted
from pipeline.running.output_table import summarise as tell

__all__ = ["check", "finish", "holds", "tell", "wanted"]

"""The place where `unit_norm` used to be; it lives in `l2o_eqx.meta_optimizers`."""

from .meta_optimizers import unit_norm as unit_norm

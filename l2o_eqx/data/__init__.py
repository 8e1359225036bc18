"""The data sets: MNIST's handwritten digits, embedded or in full."""

from ._mnist import DataError as DataError
from ._mnist import Digits as Digits
from ._mnist import load_mnist as load_mnist

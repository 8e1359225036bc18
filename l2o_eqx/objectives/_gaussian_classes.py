import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray


def gaussian_classes(
    key: PRNGKeyArray, *, num_features: int, num_examples: int, num_clusters: int
) -> tuple[Float[Array, "examples features"], Int[Array, " examples"]]:
    """Points from Gaussians of random means and covariances, each with one of two labels.

    Means have normal entries of variance 2/`num_features`, and covariances are AAᵀ with entries of A of half
    that: two Gaussians are about two standard deviations apart, however many features there are. The labels
    0 and 1 of the Gaussians are random, but not all equal. The examples come in the order of their Gaussians,
    as many of each as possible.

    **Arguments:**

    - `num_features`, `num_examples`, `num_clusters`: sizes; at least two clusters.
    """
    mkey, akey, lkey, xkey = jr.split(key, 4)
    means = jr.normal(mkey, (num_clusters, num_features)) * (2 / num_features) ** 0.5
    factors = jr.normal(akey, (num_clusters, num_features, num_features)) / num_features**0.5
    # One cluster has another label than the rest of them could all have.
    labels = jr.bernoulli(lkey, 0.5, (num_clusters,)).astype(jnp.int32)
    odd = jr.randint(jr.fold_in(lkey, 1), (), 0, num_clusters)
    alike = jnp.all(labels == labels[0])
    labels = jnp.where(alike & (jnp.arange(num_clusters) == odd), 1 - labels, labels)
    owners = jnp.arange(num_examples) * num_clusters // num_examples
    noise = jr.normal(xkey, (num_examples, num_features))
    return means[owners] + jax.vmap(jnp.matmul)(factors[owners], noise), labels[owners]

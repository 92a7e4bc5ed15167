"""The eigenvalues that scores divide by, of the stored Ritz pairs."""

from distinf.numerics.variants import Spectrum, spectrum, unrolled
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.damping import damping_of, naming_settings
from distinf.spectral.session import Session


def damped_spectrum(session: Session, factor: float = 1.0) -> Spectrum:
    """The run's Ritz values under its policy, `factor` times its damping and its filter; InputError
    if they are refused."""
    made = unfiltered_spectrum(session, factor)
    if session.settings.scores.filter == "damped":
        return made
    return unrolled(made, factor * damping_of(session, stored_pairs(session).values).decay)


def unfiltered_spectrum(session: Session, factor: float = 1.0) -> Spectrum:
    """As `damped_spectrum`, before the filter."""
    settings = session.settings.scores
    pairs = stored_pairs(session)
    # Without probes every direction has its pair (`check`), but those of the Krylov space's null.
    unknown = settings.complement == "gradients" and pairs.seen is None
    with naming_settings():
        return spectrum(
            pairs.values,
            factor * damping_of(session, pairs.values).value,
            dim=pairs.vectors.shape[1],
            trace=pairs.trace,
            policy=settings.policy,
            complement="damping" if unknown else settings.complement,
            seen=pairs.seen,
        )

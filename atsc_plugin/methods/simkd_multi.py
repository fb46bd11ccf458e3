"""SimKD with several frozen teachers, and the control for it: one teacher, several projectors."""

from atsc_plugin.methods.base import SEVERAL, method
from atsc_plugin.methods.simkd import SimKD


@method("SIMKD_MULTI", "SimKD, several teachers")
class SimKDMulti(SimKD):
    """SimKD's loss towards each of several frozen teachers, side by side. Ours, as no definition is published.

    loss = sum_k FEAT_WEIGHT * mse(P_k(F_s), F_k), where the gradient that flows into F_s is divided by K: the student
    learns at the mean of the teachers, each projector at the full single-teacher rate. Prediction: the mean over k of
    C_k(pool(P_k(F_s))), of logits or of probabilities (SIMKD.ENSEMBLE). SIMKD.PROJECTOR.COUNT n gives every teacher n
    projectors, K = n * teachers; they differ in their initial weights only and share the teacher's classifier.
    With one teacher and one projector it is SimKD to the last digit.
    """

    KEYS = ()
    TEACHERS = SEVERAL
    MULTI = ""

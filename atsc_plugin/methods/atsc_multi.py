"""ATSC with several teachers, each adapting beside the student. The paper claims it; the definition is ours."""

from atsc_plugin.methods.atsc import ATSC
from atsc_plugin.methods.base import SEVERAL, method


@method("ATSC_MULTI", "ATSC, several teachers")
class ATSCMulti(ATSC):
    """ATSC's loss towards each of K teachers, side by side; the released code has none, so this is ours.

    loss = sum_k [ FEAT * mse(P_k(F_s), F_k) + DRIFT * sum ||theta_k - theta_k0||^2
                   + TEACHER_CE * CE(C_k(sg(pool(F_k))), y) + the optional terms, each with teacher k's own logits ]
    with a projector, a starting point, a classifier, a monitor and a guard for every teacher. The gradient that flows
    into F_s is divided by K: the student learns at the mean over the teachers, while projector, trunk and classifier of
    teacher k get the undivided gradient of a single teacher; else the number of teachers would silently change each
    teacher's rate. No loss of one teacher reaches another. The student runs once a step.
    prediction = mean over k of z_k = C_k(pool(P_k(F_s))), or of softmax(z_k) (ATSC.ENSEMBLE).
    With one teacher it is ATSC, UPDATE "fused", to the last digit.
    """

    KEYS = ()
    TEACHERS = SEVERAL
    MULTI = ""

    @classmethod
    def problems(cls, cfg):
        published = cfg.ATSC.UPDATE == "published"
        refusal = "ATSC.UPDATE is published, but no step for several teachers was released. Use fused."
        return [*super().problems(cfg), *([refusal] if published else [])]

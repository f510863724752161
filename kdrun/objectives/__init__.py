"""Objectives: functions that a student is trained to minimise."""

ENTRIES = {  # name -> the module that registers it
    **dict.fromkeys(("kd", "logit_mse", "dkd", "dist", "nkd", "multi_level"), ".logits"),
    **dict.fromkeys(("fitnet", "attention", "variational", "contrastive", "review", "simkd"), ".features"),
    **dict.fromkeys(("similarity", "relational", "correlation"), ".relations"),
    **dict.fromkeys(("label_smoothing", "teacher_free"), ".teacher_free"),
}

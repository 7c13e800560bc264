# This folder needs dinit. Pipeline.from_pretrained of dinit opens it without this file; diffusers reads it in
# DiffusionPipeline.from_pretrained(..., trust_remote_code=True).
from dinit.pipelines.generate import Pipeline  # noqa: F401

"""The stages after the diffusion model: the pixel decoder on its features, and the student."""

from __future__ import annotations

from app_cdm.cldf.features import blocks_of
from app_cdm.cldf.train import DecoderTraining, find_votes
from app_cdm.cldf.votes import thorough
from app_cdm.data.dataset import TaggedSlices
from app_cdm.pipeline import CDMPipeline
from app_cdm.student.train import StudentTraining
from app_cdm.training.loop import Watch
from app_cdm.training.record import stage_id
from app_cdm.training.stage import RunPlan, Stage


def train_later_stages(pipeline: CDMPipeline, data: TaggedSlices, plan: RunPlan) -> CDMPipeline:
    """Trains a pixel decoder, a student or both on a frozen diffusion model.

    Where both are trained, they teach each other: after each of its rounds the student is heard when the decoder's seeds are chosen, and
    the new decoder when the next student's targets are made. Their inputs differ, and so do their errors (co-training, Blum and
    Mitchell 1998).

    The maps are made by all processes of the team. Decoder and student are trained by the main one: they take little of the time, and need
    their whole batch (pairs of pixels, Dice over it), so their result is that of one process.

    Classes that exclude each other are each told apart from slices without any class, see `TaggedSlices.beside_empty_slices`.

    Each stage keeps its files in a folder named after all that it depends on, so other weights, tags or settings never meet them.

    Args:
        pipeline: the trained diffusion model.
        data: the tagged slices.
        plan: the run.

    Returns:
        The pipeline with what was trained; in other processes than the main one as it was.

    Raises:
        ValueError: a student is asked for, and there is no pixel decoder; or the U-Net lacks a decoder block that is asked for.
    """
    settings = plan.settings
    model = pipeline.saliency_model()
    if model.exclusive_classes and data.has_empty_slices:
        data = data.beside_empty_slices()
    saliency = thorough(pipeline.settings_for("cdm_saliency").saliency)
    base = pipeline.with_networks(pixel_decoder=None, student=None)
    tag_states = stage_id(data.image_ids, data.states.tolist())

    def stage(name: str, *depends: object) -> Stage:
        identity = stage_id(base.model_version, tag_states, *depends)
        watch = plan.watches.get(name, Watch())
        return Stage(plan.folder / f"{name}_{identity[:8]}", identity, settings.seed, plan.device, plan.progress, watch, plan.team)

    if pipeline.pixel_decoder is None and "cldf" not in plan.stages:
        raise ValueError("the student learns from a pixel decoder, and the model has none: run the stage cldf too")
    if "cldf" in plan.stages:
        blocks_of(model.unet, model.patch_size, settings.cldf.features.blocks)  # before maps are made for a U-Net without them
    votes = find_votes(model, data, saliency, stage("votes"))
    if not plan.team.is_main:
        return pipeline
    decoder, student = pipeline.pixel_decoder, pipeline.student if "cldf" not in plan.stages else None
    decoders: DecoderTraining | None = None
    if "cldf" in plan.stages:
        own = stage("cldf", settings.cldf.to_dict(), settings.student.to_dict() if "student" in plan.stages else None, settings.seed)
        decoders = DecoderTraining(model, data, votes, saliency, settings.cldf, settings.network, own)
        for _ in range(settings.cldf.num_rounds):
            decoder = decoders.learn()
    if "student" in plan.stages and decoder is not None:
        decoder_id = base.with_networks(pixel_decoder=decoder).model_version
        own = stage("student", decoder_id, settings.cldf.to_dict() if decoders else None, settings.student.to_dict(), settings.seed)
        students = StudentTraining(model, data, votes, saliency, settings.student, own)
        for _ in range(settings.student.num_rounds):
            student = students.learn(decoder)
            decoder = decoders.learn(student) if decoders else decoder
    if decoders:
        decoders.close()
    return pipeline.with_networks(pixel_decoder=decoder, student=student)

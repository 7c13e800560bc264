"""Pipeline methods that write its folder and upload it to the Hub, with a card."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dinit.cards import CARD, set_license, write_card
from dinit.compat import is_light
from dinit.files import user_path
from dinit.models.codec import normalization_in_config, per_channel
from dinit.pipelines.hub import (
    CUSTOM_PIPELINE_TEXT,
    CUSTOM_PIPELINES,
    has_card,
    name_own_class,
    pipeline_card,
)

if TYPE_CHECKING or not is_light():
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
else:
    from dinit.pipelines.light import DiffusionPipeline

if TYPE_CHECKING:
    from dinit.pipelines.generate import Pipeline


class SavingMethods(DiffusionPipeline):
    """A DiffusionPipeline whose folder has a card, and is uploaded as it is saved."""

    if TYPE_CHECKING:
        vae: Any

        def _plain(self, key: str) -> Any: ...

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        license: str | None = None,
        push_to_hub: bool = False,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Writes the pipeline's folder, as diffusers does, with a card for the Hub.

        Besides `Pipeline.from_pretrained(folder)`, diffusers' own entry opens it, by its dinit_pipeline.py:
        `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`. A card that is there stays as it is,
        unless this method wrote it and it was not edited since.

        Args:
            save_directory: the folder, which is made.
            license: of the weights, an identifier of the Hub such as 'apache-2.0'; it is put into a card that is
                there too. None is that of the card there, or 'unknown'.
            push_to_hub: upload the folder too, as it then is, its card included. repo_id, commit_message, private,
                token and create_pr are those of the method of this name.
            safe_serialization: True; pickled weights are not written.
            kwargs: as in diffusers.

        Raises:
            ValueError: a license that is no identifier; pickled weights.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False writes pickles, which dinit never opens; leave it out")
        folder = user_path(save_directory)
        card = pipeline_card(cast("Pipeline", self), license=license)
        folder.mkdir(parents=True, exist_ok=True)
        for name in CUSTOM_PIPELINES:
            (folder / name).write_text(CUSTOM_PIPELINE_TEXT, encoding="utf-8")
        write_card(folder, card)
        if license is not None:
            set_license(folder, license)
        uploads = ("repo_id", "commit_message", "private", "token", "create_pr")
        upload = {name: kwargs.pop(name) for name in uploads if name in kwargs}
        own = self._plain("latent_normalization")
        normalized = self.vae is not None and own  # vae/config.json then has it too, for diffusers
        with normalization_in_config(self.vae, **per_channel(**own)) if normalized else nullcontext():
            super().save_pretrained(folder, **kwargs)
        name_own_class(folder)
        if push_to_hub:
            name, private = upload.pop("repo_id", folder.name), upload.pop("private", None)
            repo = _repository(name, private, upload.get("token"))
            self._upload_folder(folder, repo, **upload)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        license: str | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes, card included, to a repository of the Hub.

        A card that the repository has already is kept.

        Args:
            repo_id: owner/name; the repository is made where there is none.
            commit_message: of the upload.
            private: whether a new repository is private.
            token: of the Hub; None is that of `hf auth login`.
            create_pr: make a pull request.
            safe_serialization: as for `save_pretrained`.
            variant: as in diffusers.
            subfolder: of the repository.
            license: as for `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: as `save_pretrained`.
        """
        repo = _repository(repo_id, private, token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license, safe_serialization=safe_serialization, variant=variant)
            if has_card(repo, subfolder, token):
                (Path(folder) / CARD).unlink()
            return self._upload_folder(
                folder,
                repo,
                token=token,
                commit_message=commit_message,
                create_pr=create_pr,
                subfolder=subfolder,
            )


def _repository(name: str, private: bool | None, token: str | None) -> str:
    """Id of a repository of the Hub, which is made where there is none; by the import of diffusers' own uploads."""
    from diffusers.utils import hub_utils

    return hub_utils.create_repo(name, private=private, token=token, exist_ok=True).repo_id  # pyright: ignore

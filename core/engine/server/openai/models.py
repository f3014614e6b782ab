"""GET /v1/models: the one model that is served, under each of its names."""

from engine.server.openai.responses import ModelCard, ModelList
from engine.server.service import Service


def list_models(service: Service) -> ModelList:
    return ModelList([model_card(service, name) for name in service.model_names])


def model_card(service: Service, name: str) -> ModelCard:
    """Raises HttpError 404 where `name` is not served."""
    return ModelCard(
        service.check_model(name),
        service.created,
        service.facts.model.name,
        service.facts.max_model_len,
    )

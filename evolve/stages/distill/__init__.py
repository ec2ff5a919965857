"""Knowledge distillation. So far its losses; the stage that trains with them is not there yet."""

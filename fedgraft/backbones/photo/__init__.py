"""`photo`, a dual encoder of published encoders of photographs and of sentences, joined by a map learnt from words."""
